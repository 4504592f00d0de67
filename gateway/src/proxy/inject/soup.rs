//! Random HTML against a second opinion: html5ever, a browser-grade parser that builds the tree.
//!
//! Whatever the markup, the page with the tag must be the very page without it plus one script in its head
//! or body, and cutting or coding the body must change nothing. A failure prints the seed and the page.

use super::body::{Brief, Injection, Outcome};
use super::coding::Coding;
use super::coding::tests::{decode_all, encode_all};
use super::locate::tests::parse_whole;
use super::locate::{Markup, Step};
use super::opening;
use bytes::Bytes;
use html5ever::tendril::TendrilSink;
use markup5ever_rcdom::{Handle, NodeData, RcDom};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

#[test]
fn soup_with_the_tag_is_the_soup_plus_one_script() {
    let (mut injected, mut shortcuts) = (0, 0);
    for seed in 0..CASES {
        let mut random = StdRng::seed_from_u64(seed);
        let page = soup(&mut random);
        let charset_known = random.random();
        let chunks = cut(&mut random, page.as_bytes());
        let (output, outcome) = run(None, charset_known, &[page.as_bytes()], None);
        let context = format!("seed {seed}, charset known {charset_known}, {outcome:?}\n{page:?}");

        // The shortcut must say what lol_html says, or nothing.
        if let Some(offset) = opening::scan(page.as_bytes(), charset_known) {
            shortcuts += 1;
            assert_eq!(parse_whole(page.as_bytes(), charset_known), Step::At(offset as u64), "{context}");
        }

        let (in_pieces, again) = run(None, charset_known, &chunks, None);
        assert_eq!((&in_pieces, again), (&output, outcome), "cut: {context}");
        let (promised, again) = run(None, charset_known, &chunks, Some(page.len() as u64));
        assert_eq!((promised.len(), again), (page.len() + TAG.len(), outcome), "length: {context}");
        assert!(promised.starts_with(&output), "length: {context}");

        let output = String::from_utf8(output).unwrap();
        if outcome == Outcome::Injected {
            injected += 1;
            assert_eq!(output.replacen(TAG, "", 1), page, "bytes: {context}");
            assert_same_tree(&page, &output, &context);
        } else {
            assert_eq!(output, page, "untouched: {context}");
        }
        if seed % 8 == 0 {
            check_codings(&mut random, &page, &output, outcome, charset_known, &context);
        }
    }
    assert!(injected > CASES / 3, "only {injected} pages were injected: the soup is too thin");
    assert!(shortcuts > CASES / 20, "only {shortcuts} pages took the shortcut: the soup is too thick");
}

fn check_codings(
    random: &mut StdRng,
    page: &str,
    expected: &str,
    outcome: Outcome,
    charset_known: bool,
    context: &str,
) {
    for coding in [Coding::Gzip, Coding::Brotli, Coding::Zstd, Coding::Deflate] {
        let coded = encode_all(coding, page.as_bytes());
        let chunks = cut(random, &coded);
        let (output, again) = run(Some(coding), charset_known, &chunks, None);
        assert_eq!(again, outcome, "{coding:?}: {context}");
        let decoded = decode_all(coding, &output);
        assert_eq!(decoded.as_deref(), Some(expected.as_bytes()), "{coding:?}: {context}");
    }
}

fn run(
    coding: Option<Coding>,
    charset_known: bool,
    chunks: &[&[u8]],
    promised_bytes: Option<u64>,
) -> (Vec<u8>, Outcome) {
    let mut injection = Injection::new(Brief {
        tag: Bytes::from_static(TAG.as_bytes()),
        markup: Markup::Html,
        charset_known,
        coding,
        promised_bytes,
        bytes_max: 1 << 16,
    });
    let mut output = Vec::new();
    for (index, part) in chunks.iter().enumerate() {
        let mut chunk = Some(Bytes::copy_from_slice(part));
        injection.feed(&mut chunk, index + 1 == chunks.len());
        output.extend_from_slice(&chunk.unwrap_or_default());
    }
    (output, injection.outcome())
}

/// The trees are equal but for one script, which is a child of the head or body.
fn assert_same_tree(page: &str, output: &str, context: &str) {
    let before = tree(page);
    let after = tree(output);
    assert_eq!(before.shape, after.shape, "tree: {context}");
    assert!(before.tag_parents.is_empty(), "{context}");
    match after.tag_parents.as_slice() {
        [parent] => assert!(matches!(parent.as_str(), "html/head" | "html/body"), "{parent}: {context}"),
        // A frameset after a stray end tag throws away the body that the end tag had opened, tag and all.
        [] => assert!(page.contains("<frameset"), "lost: {context}"),
        _ => panic!("{:?}: {context}", after.tag_parents),
    }
}

struct Tree {
    /// The document without the tag, neighbouring texts joined.
    shape: String,
    /// Paths of the elements that the tag is a child of.
    tag_parents: Vec<String>,
}

fn tree(html: &str) -> Tree {
    let dom = html5ever::parse_document(RcDom::default(), html5ever::ParseOpts::default()).one(html);
    let mut tree = Tree { shape: String::new(), tag_parents: Vec::new() };
    walk(&dom.document, "", &mut tree);
    // Texts that the tag came between.
    tree.shape = tree.shape.replace("\u{1}\u{2}", "");
    tree
}

fn walk(node: &Handle, path: &str, tree: &mut Tree) {
    for child in node.children.borrow().iter() {
        match &child.data {
            NodeData::Text { contents } => {
                tree.shape += &format!("\u{2}{}\u{1}", contents.borrow());
            }
            NodeData::Comment { contents } => tree.shape += &format!("<!--{contents}-->"),
            NodeData::Doctype { name, public_id, system_id } => {
                tree.shape += &format!("<!{name} {public_id} {system_id}>");
            }
            NodeData::Element { name, attrs, template_contents, .. } => {
                let attributes: Vec<String> =
                    attrs.borrow().iter().map(|a| format!("{}={:?}", a.name.local, &*a.value)).collect();
                if &*name.local == "script" && attributes.first().is_some_and(|a| a == "src=\"/c.js\"") {
                    tree.tag_parents.push(path.to_owned());
                    assert!(child.children.borrow().is_empty());
                    continue;
                }
                tree.shape += &format!("<{} {}>", name.local, attributes.join(" "));
                let path =
                    if path.is_empty() { name.local.to_string() } else { format!("{path}/{}", name.local) };
                if let Some(contents) = &*template_contents.borrow() {
                    walk(contents, &format!("{path}/content"), tree);
                }
                walk(child, &path, tree);
                tree.shape += "</>";
            }
            NodeData::Document | NodeData::ProcessingInstruction { .. } => {}
        }
    }
}

/// A page of random pieces, the first of them likelier to be what pages begin with.
fn soup(random: &mut StdRng) -> String {
    let mut page = String::new();
    for opening in OPENINGS {
        if random.random_bool(0.5) {
            page += opening.choose(random).unwrap();
        }
    }
    for _ in 0..random.random_range(0..8) {
        page += PIECES.choose(random).unwrap();
    }
    if random.random_bool(0.1) {
        let mut end = random.random_range(0..=page.len());
        while !page.is_char_boundary(end) {
            end -= 1;
        }
        page.truncate(end);
    }
    page
}

fn cut<'b>(random: &mut StdRng, bytes: &'b [u8]) -> Vec<&'b [u8]> {
    let mut chunks = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() && chunks.len() < 20 {
        let (chunk, after) = rest.split_at(random.random_range(0..=rest.len().min(40)));
        chunks.push(chunk);
        rest = after;
    }
    chunks.push(rest);
    chunks
}

const TAG: &str = "<script src=\"/c.js\" defer></script>";
/// A few seconds unoptimised.
const CASES: u64 = 4_000;

const OPENINGS: [&[&str]; 5] = [
    &["\u{feff}", "\n", "<!-- c -->", "<?xml version='1.0'?>", "<!---->", "<!-->", "<!x>"],
    &[
        "<!doctype html>",
        "<!DOCTYPE html PUBLIC \"-//W3C//DTD HTML 4.01//EN\" 'x'>",
        "<!doctype>",
        "<!doctype html SYSTEM \"a>b\">",
    ],
    &["<html>", "<html lang=en>", "<HTML a='>' b=\"<head>\" c>", "\r\n<html\n>"],
    &["<head>", "<HEAD/>", "<head x='<body>'>", " <head >"],
    &[
        "<meta charset=utf-8>",
        "<title>a</title>",
        "<meta http-equiv='content-type' content='text/html; charset=utf-8'/>",
    ],
];

const PIECES: [&str; 64] = [
    "<html>",
    "<head>",
    "</head>",
    "<body>",
    "</body>",
    "</html>",
    "<title>",
    "</title>",
    "<title>t<head></title>",
    "<meta charset=utf-8>",
    "<meta name=x content='a>b'>",
    "<meta>",
    "<link rel=x>",
    "<base href=x>",
    "<style>a{}</style>",
    "<style><head></style>",
    "<script>",
    "</script>",
    "<script>'<head>'</script>",
    "<script><!--<script></script>",
    "<script src=x></script>",
    "<noscript>",
    "</noscript>",
    "<noscript><head></noscript>",
    "<template>",
    "</template>",
    "<template><head></template>",
    "<svg>",
    "</svg>",
    "<svg><title>",
    "<math>",
    "<textarea>",
    "<textarea><body></textarea>",
    "<select>",
    "<select><head></select>",
    "<option>",
    "<table>",
    "<tr>",
    "<td>",
    "</table>",
    "<frameset>",
    "<frame>",
    "</frameset>",
    "<plaintext>",
    "<xmp>",
    "<iframe>",
    "<!-- <head> -->",
    "<!--",
    "-->",
    "<!doctype html>",
    "<![CDATA[x]]>",
    "<p>",
    "</p>",
    "</br>",
    "<br/>",
    "text",
    "\u{e9}\u{4e2d}",
    "&amp;",
    " \t\n",
    "\r",
    "\0",
    "<",
    "</",
    "<hea",
];
