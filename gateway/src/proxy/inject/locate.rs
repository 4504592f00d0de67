//! Finds the one byte offset in an HTML document where the collector's tag may go.
//!
//! lol_html tokenises; nothing it would output is used, only the places it reports. So whatever it makes
//! of a page, the page's own bytes are never rewritten. This file knows nothing of HTTP, codings or tags.
//!
//! Invariant: how a document is cut into chunks never changes the answer.

use super::opening;
use lol_html::errors::RewritingError;
use lol_html::html_content::TextType;
use lol_html::send::{DocumentContentHandlers, Element, ElementContentHandlers, HtmlRewriter, Settings};
use lol_html::{AsciiCompatibleEncoding, HandlerResult, MemorySettings, Selector};
use std::borrow::Cow;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

/// How the document is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Markup {
    Html,
    /// Only the plain `<html xmlns=…><head>` opening is understood; an XML parser forgives nothing.
    Xhtml,
}

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Not decided. Bytes before this offset are certainly in front of the insertion point.
    Undecided { settled: u64 },
    /// Insert at this offset from the start of the document.
    At(u64),
    /// Never.
    Nowhere(Nowhere),
}

/// Why a document has no insertion point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nowhere {
    /// Neither doctype nor html, head or body before the first content.
    Fragment,
    /// Not found within the limit.
    TooLong,
    /// Ends inside a tag, comment or title.
    Unfinished,
    /// A `<meta>` names an encoding in which the tag's bytes would mean something else.
    Charset,
    /// Markup that lol_html cannot be sure about, or an XHTML opening other than the plain one.
    Ambiguous,
}

type Rewriter = HtmlRewriter<'static, Box<dyn FnMut(&[u8]) + Send>>;

/// A document being read up to its insertion point.
pub(super) struct Locator {
    markup: Markup,
    charset_known: bool,
    bytes_max: usize,
    /// Only once the shortcut has failed: building one costs more than reading a usual opening. In a mutex
    /// only because lol_html is not `Sync`; never locked, `get_mut` is free.
    parser: Option<Mutex<Parser>>,
}

impl Locator {
    /// `charset_known`: the header names the encoding, so the tag may move a `<meta charset>` along.
    /// `bytes_max`: how many bytes of the document may be read.
    pub(super) fn new(markup: Markup, charset_known: bool, bytes_max: usize) -> Locator {
        Locator { markup, charset_known, bytes_max, parser: None }
    }

    /// Reads on. After an answer other than `Undecided` the locator must be dropped.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Step {
        if self.parser.is_none() {
            if bytes.is_empty() {
                return Step::Undecided { settled: 0 };
            }
            if self.markup == Markup::Html
                && let Some(offset) = opening::scan(bytes, self.charset_known)
                && offset <= self.bytes_max
            {
                return Step::At(offset as u64);
            }
        }
        self.parser().push(bytes)
    }

    /// The document ended without an answer: its end is the insertion point if that is a place for a tag.
    pub(super) fn finish(&mut self) -> Step {
        self.parser().finish()
    }

    fn parser(&mut self) -> &mut Parser {
        let (markup, charset_known, bytes_max) = (self.markup, self.charset_known, self.bytes_max);
        self.parser
            .get_or_insert_with(|| Mutex::new(Parser::new(markup, charset_known, bytes_max)))
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// lol_html, and what it has told so far.
struct Parser {
    rewriter: Rewriter,
    scan: Arc<Mutex<Scan>>,
    bom: Bom,
    /// Bytes before the first one lol_html saw: a byte order mark, which it must not take for text.
    base: u64,
    /// Bytes given to lol_html.
    fed: u64,
    /// Bytes it went over, some of them again and again.
    worked_bytes: u64,
    worked_bytes_max: u64,
    bytes_max: u64,
}

impl Parser {
    fn new(markup: Markup, charset_known: bool, bytes_max: usize) -> Parser {
        let scan = Arc::new(Mutex::new(Scan {
            markup,
            charset_known: charset_known || markup == Markup::Xhtml,
            is_document: false,
            in_title: false,
            settled: 0,
            verdict: None,
        }));
        let on_element = {
            let scan = scan.clone();
            move |element: &mut Element<'_, '_>| handle_element(&scan, element)
        };
        let on_text = {
            let scan = scan.clone();
            move |text: &mut lol_html::html_content::TextChunk<'_>| {
                if text.text_type() == TextType::Data {
                    lock(&scan).on_text(text.source_location().bytes().start as u64, text.as_str())?;
                }
                Ok(())
            }
        };
        let on_doctype = {
            let scan = scan.clone();
            move |_: &mut lol_html::html_content::Doctype<'_>| {
                let mut scan = lock(&scan);
                // In XHTML the root element alone decides.
                scan.is_document |= scan.markup == Markup::Html;
                Ok(())
            }
        };
        let settings = Settings::new_send()
            .append_element_content_handler((
                Cow::Borrowed(&*EVERY_ELEMENT),
                ElementContentHandlers::default().element(on_element),
            ))
            .append_document_content_handler(
                DocumentContentHandlers::default().doctype(on_doctype).text(on_text),
            )
            // A one-byte encoding whatever the page's: text then never waits for the rest of a character,
            // and an index into it is a byte offset. Only ASCII is ever looked at.
            .with_encoding(one_byte_encoding())
            .with_memory_settings(
                MemorySettings::new()
                    .with_preallocated_parsing_buffer_size(0)
                    .with_max_allowed_memory_usage(bytes_max + PARSER_OVERHEAD_BYTES),
            );
        let on_output = {
            let scan = scan.clone();
            move |bytes: &[u8]| lock(&scan).settled += bytes.len() as u64
        };
        Parser {
            rewriter: HtmlRewriter::new(settings, Box::new(on_output)),
            scan,
            bom: Bom::Matching(0),
            base: 0,
            fed: 0,
            worked_bytes: 0,
            worked_bytes_max: WORKED_BYTES_MAX,
            bytes_max: bytes_max as u64,
        }
    }

    fn push(&mut self, mut bytes: &[u8]) -> Step {
        while let Bom::Matching(matched) = self.bom {
            let Some(first) = bytes.first() else { return self.undecided() };
            if *first != BOM[matched] {
                self.bom = Bom::Passed;
                if let Some(answer) = self.parse(&BOM[..matched]) {
                    return answer;
                }
            } else if matched + 1 == BOM.len() {
                self.bom = Bom::Passed;
                self.base = BOM.len() as u64;
                // A byte order mark outranks every other declaration.
                lock(&self.scan).charset_known = true;
                bytes = &bytes[1..];
            } else {
                self.bom = Bom::Matching(matched + 1);
                bytes = &bytes[1..];
            }
        }
        self.parse(bytes).unwrap_or_else(|| self.undecided())
    }

    fn finish(&mut self) -> Step {
        if let Bom::Matching(matched) = self.bom {
            self.bom = Bom::Passed;
            if let Some(answer) = self.parse(&BOM[..matched]) {
                return answer;
            }
        }
        let scan = lock(&self.scan);
        if scan.markup == Markup::Xhtml {
            return Step::Nowhere(Nowhere::Unfinished);
        }
        if !scan.is_document {
            return Step::Nowhere(Nowhere::Fragment);
        }
        if scan.in_title || scan.settled < self.fed {
            return Step::Nowhere(Nowhere::Unfinished);
        }
        Step::At(self.base + self.fed)
    }

    fn parse(&mut self, bytes: &[u8]) -> Option<Step> {
        // What is left of the limit still counts, so that the limit is a place and not a chunk.
        let left = (self.bytes_max - self.fed) as usize;
        let (bytes, is_too_long) = if bytes.len() > left { (&bytes[..left], true) } else { (bytes, false) };
        self.fed += bytes.len() as u64;
        self.worked_bytes += self.fed - lock(&self.scan).settled;
        if self.worked_bytes > self.worked_bytes_max {
            return Some(Step::Nowhere(Nowhere::TooLong));
        }
        match self.rewriter.write(bytes) {
            Ok(()) => is_too_long.then_some(Step::Nowhere(Nowhere::TooLong)),
            Err(RewritingError::MemoryLimitExceeded(_)) => Some(Step::Nowhere(Nowhere::TooLong)),
            Err(RewritingError::ContentHandlerError(_)) => Some(match lock(&self.scan).verdict {
                Some(Verdict::At(offset)) => Step::At(self.base + offset),
                Some(Verdict::Nowhere(reason)) => Step::Nowhere(reason),
                None => Step::Nowhere(Nowhere::Ambiguous),
            }),
            Err(_) => Some(Step::Nowhere(Nowhere::Ambiguous)),
        }
    }

    fn undecided(&self) -> Step {
        match self.bom {
            Bom::Matching(_) => Step::Undecided { settled: 0 },
            Bom::Passed => Step::Undecided { settled: self.base + lock(&self.scan).settled },
        }
    }
}

/// What the handlers share with the locator.
struct Scan {
    markup: Markup,
    charset_known: bool,
    /// A doctype, html, head or body was seen.
    is_document: bool,
    in_title: bool,
    /// Bytes lol_html is done with.
    settled: u64,
    verdict: Option<Verdict>,
}

#[derive(Clone, Copy)]
enum Verdict {
    At(u64),
    Nowhere(Nowhere),
}

impl Scan {
    /// Stores the verdict and stops lol_html, which would otherwise parse the rest of its slice.
    fn decide(&mut self, verdict: Verdict) -> HandlerResult {
        self.verdict = Some(verdict);
        Err(Box::new(Decided))
    }

    fn at(&mut self, offset: u64) -> HandlerResult {
        self.decide(Verdict::At(offset))
    }

    fn nowhere(&mut self, reason: Nowhere) -> HandlerResult {
        self.decide(Verdict::Nowhere(reason))
    }

    /// Content begins at `offset`: a document gets its tag in front of it, a fragment none at all.
    fn before(&mut self, offset: u64) -> HandlerResult {
        if self.is_document { self.at(offset) } else { self.nowhere(Nowhere::Fragment) }
    }

    fn on_text(&mut self, start: u64, text: &str) -> HandlerResult {
        let is_space = |c: char| matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
        match text.find(|c| !is_space(c)) {
            // Everything before the hit is ASCII, so the index is also an offset.
            Some(_) if self.markup == Markup::Xhtml => self.nowhere(Nowhere::Ambiguous),
            Some(index) => self.before(start + index as u64),
            None => Ok(()),
        }
    }
}

fn handle_element(shared: &Arc<Mutex<Scan>>, element: &mut Element<'_, '_>) -> HandlerResult {
    let place = element.source_location().bytes();
    let (start, end) = (place.start as u64, place.end as u64);
    let mut scan = lock(shared);
    if scan.markup == Markup::Xhtml {
        return handle_xhtml_element(&mut scan, element, end);
    }
    // Browsers look for a charset in the first 1024 bytes only; past them nothing can be pushed out.
    if start >= CHARSET_SNIFF_BYTES {
        scan.charset_known = true;
    }
    match element.tag_name().as_str() {
        "html" => {
            scan.is_document = true;
            Ok(())
        }
        "head" => {
            scan.is_document = true;
            if scan.charset_known {
                return scan.at(end);
            }
            let shared = shared.clone();
            drop(scan);
            element
                .on_end_tag(Box::new(move |tag| lock(&shared).at(tag.source_location().bytes().start as u64)))
        }
        "body" | "frameset" => {
            scan.is_document = true;
            scan.at(start)
        }
        // Still in front of any evidence these may head a document that shows its html or body later.
        "meta" | "title" | "link" | "base" if !scan.is_document => handle_head_element(scan, shared, element),
        "meta" | "title" if !scan.charset_known => handle_head_element(scan, shared, element),
        _ => scan.before(start),
    }
}

/// A head element that the tag lets pass: it watches `<meta>` for a charset and `<title>` for its end.
fn handle_head_element(
    mut scan: MutexGuard<'_, Scan>,
    shared: &Arc<Mutex<Scan>>,
    element: &mut Element<'_, '_>,
) -> HandlerResult {
    match element.tag_name().as_str() {
        "title" => {
            scan.in_title = true;
            let shared = shared.clone();
            drop(scan);
            element.on_end_tag(Box::new(move |_| {
                lock(&shared).in_title = false;
                Ok(())
            }))
        }
        "meta" => match declared_charset(element) {
            Some(label) if !is_ascii_compatible(&label) => scan.nowhere(Nowhere::Charset),
            Some(_) => {
                scan.charset_known = true;
                let end = element.source_location().bytes().end as u64;
                if scan.is_document { scan.at(end) } else { Ok(()) }
            }
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn handle_xhtml_element(scan: &mut Scan, element: &Element<'_, '_>, end: u64) -> HandlerResult {
    match element.tag_name_preserve_case().as_str() {
        "html" if !scan.is_document && element.get_attribute("xmlns").as_deref() == Some(XHTML_NAMESPACE) => {
            scan.is_document = true;
            Ok(())
        }
        "head" if scan.is_document && !element.is_self_closing() => scan.at(end),
        _ => scan.nowhere(Nowhere::Ambiguous),
    }
}

/// The label a `<meta>` gives for the document's encoding.
fn declared_charset(meta: &Element<'_, '_>) -> Option<String> {
    if let Some(label) = meta.get_attribute("charset") {
        return Some(label);
    }
    let names_type = meta.get_attribute("http-equiv")?.trim().eq_ignore_ascii_case("content-type");
    let content = meta.get_attribute("content")?.to_ascii_lowercase();
    let (_, label) = content.split_once("charset")?;
    let label = label.trim_start().strip_prefix('=')?.trim_start();
    let label = label.trim_start_matches(['"', '\'']);
    let label = label.split(['"', '\'', ';', ' ']).next().unwrap_or(label);
    names_type.then(|| label.to_owned())
}

/// Whether the tag's ASCII bytes read as themselves. A label nobody knows is ignored by browsers too;
/// UTF-16 in a `<meta>` is read as UTF-8, because the `<meta>` was legible.
fn is_ascii_compatible(label: &str) -> bool {
    use encoding_rs::{Encoding, UTF_16BE, UTF_16LE};
    match Encoding::for_label(label.as_bytes()) {
        Some(encoding) => encoding.is_ascii_compatible() || encoding == UTF_16BE || encoding == UTF_16LE,
        None => true,
    }
}

fn one_byte_encoding() -> AsciiCompatibleEncoding {
    AsciiCompatibleEncoding::new(encoding_rs::WINDOWS_1252).unwrap_or_else(AsciiCompatibleEncoding::utf_8)
}

/// A handler that panicked has left nothing half-written here.
fn lock(scan: &Mutex<Scan>) -> MutexGuard<'_, Scan> {
    scan.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Copy)]
enum Bom {
    /// So many bytes of it were there.
    Matching(usize),
    Passed,
}

/// Tells lol_html to stop; carries no news, the verdict is in `Scan`.
#[derive(Debug, thiserror::Error)]
#[error("insertion point decided")]
struct Decided;

#[allow(clippy::expect_used)] // A constant selector; a test uses it.
static EVERY_ELEMENT: LazyLock<Selector> = LazyLock::new(|| "*".parse().expect("`*` is a selector"));

const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];
const XHTML_NAMESPACE: &str = "http://www.w3.org/1999/xhtml";
/// How far browsers look for a `<meta charset>` before they start to parse (HTML standard, "prescan").
const CHARSET_SNIFF_BYTES: u64 = 1024;
/// An unfinished token is read again with every chunk; this much reading takes some 40 ms. Only a giant token
/// in tiny chunks gets there, and only there does the cut of a document change the answer.
const WORKED_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What lol_html holds besides the unfinished token: a stack of open elements and its tables.
const PARSER_OVERHEAD_BYTES: usize = 64 * 1024;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What lol_html says of a whole page, without the shortcut.
    pub(in super::super) fn parse_whole(page: &[u8], charset_known: bool) -> Step {
        let mut parser = Parser::new(Markup::Html, charset_known, BYTES_MAX);
        match parser.push(page) {
            Step::Undecided { .. } => parser.finish(),
            answer => answer,
        }
    }

    const BYTES_MAX: usize = 4096;

    /// `page` holds a `|` where the tag belongs, or none at all with the reason in `expected`. The answer
    /// must be the same however the page is cut.
    #[track_caller]
    fn check(markup: Markup, charset_known: bool, page: &[u8], expected: Option<Nowhere>) {
        let mark = page.iter().position(|byte| *byte == b'|');
        let html: Vec<u8> = page.iter().copied().filter(|byte| *byte != b'|').collect();
        let want = match (mark, expected) {
            (Some(offset), None) => Step::At(offset as u64),
            (None, Some(reason)) => Step::Nowhere(reason),
            _ => panic!("either a mark or a reason"),
        };
        let shown = String::from_utf8_lossy(page);
        for cut in 0..=html.len() {
            let (first, second) = html.split_at(cut);
            assert_eq!(locate(markup, charset_known, [first, second]), want, "cut at {cut}: {shown}");
        }
        assert_eq!(locate(markup, charset_known, html.chunks(1)), want, "byte by byte: {shown}");
        assert_eq!(locate(markup, charset_known, html.chunks(3)), want, "three by three: {shown}");
    }

    fn locate<'a>(markup: Markup, charset_known: bool, chunks: impl IntoIterator<Item = &'a [u8]>) -> Step {
        let mut locator = Locator::new(markup, charset_known, BYTES_MAX);
        let mut sent = 0;
        for chunk in chunks {
            match locator.push(chunk) {
                Step::Undecided { settled } => {
                    assert!(settled >= sent);
                    sent = settled;
                }
                Step::At(offset) => {
                    assert!(offset >= sent, "insertion point {offset} among {sent} bytes already settled");
                    return Step::At(offset);
                }
                nowhere => return nowhere,
            }
        }
        locator.finish()
    }

    #[track_caller]
    fn with_charset(page: &str) {
        check(Markup::Html, true, page.as_bytes(), None);
    }

    #[track_caller]
    fn without_charset(page: &str) {
        check(Markup::Html, false, page.as_bytes(), None);
    }

    #[track_caller]
    fn nowhere(page: &str, reason: Nowhere) {
        check(Markup::Html, true, page.as_bytes(), Some(reason));
        check(Markup::Html, false, page.as_bytes(), Some(reason));
    }

    #[track_caller]
    fn xhtml(page: &str, expected: Option<Nowhere>) {
        check(Markup::Xhtml, false, page.as_bytes(), expected);
    }

    #[test]
    fn the_tag_comes_first_in_the_head() {
        with_charset("<!doctype html><html><head>|<base href=/x><script src=a></script></head><body>x");
        with_charset("<HTML lang='a>b'><HEAD profile=\"x>y\">|<title>t</title>");
        with_charset(
            "<!doctype html><!--[if lt IE 9]><html class=ie><head><![endif]-->\
             <!--[if gt IE 8]><!--><html class=new><!--<![endif]--><head>|<title>",
        );
        with_charset("\u{feff}<!doctype html>\n<html>\n <head >|");
        with_charset(
            "<!-- <head> --><?xml version='1.0'?><!DOCTYPE html PUBLIC '-//x' \"y\"><html><head>|<head>",
        );
    }

    #[test]
    fn without_a_charset_in_the_header_the_meta_comes_first() {
        without_charset("<!doctype html><head><title>é</title><meta name=a><meta charset=utf-8>|<link>");
        without_charset(
            "<head><meta http-equiv=\"Content-Type\" content=\"text/html; CHARSET = 'utf-8'\">|<title>",
        );
        without_charset(
            "<head><meta http-equiv=refresh content=charset=utf-8>|<base href=x><meta charset=utf-8>",
        );
        without_charset("<html><head>\n<title>x</title>|<script></script><meta charset=utf-8>");
        without_charset("<html><head><title><meta charset=utf-8></title>|</head><body>");
        without_charset("<head><meta name=x>|<body>");
        without_charset("<html><meta name=x>|text");
        without_charset("\u{feff}<head>|<meta charset=utf-8>");
        let comment = format!("<!--{}-->", "x".repeat(1100));
        without_charset(&format!("<head>{comment}|<meta charset=utf-8>"));
        without_charset(&format!("{comment}<html><head>|<meta charset=utf-8>"));
    }

    #[test]
    fn documents_without_a_head_get_the_tag_before_their_content() {
        with_charset("<!doctype html>|<title>x</title><p>y");
        with_charset("<html>|<body class=a>x");
        with_charset("|<body>x");
        with_charset("|<frameset><frame></frameset>");
        with_charset("<!doctype html>\n\t |Hello <head>");
        with_charset("<!doctype html>|\u{e9}t\u{e9}");
        with_charset("<!doctype html><!-- a --><!-- b -->|<svg><head></svg>");
        with_charset("<!doctype html><html>|<noscript><head></noscript>");
        with_charset("<html>|<script>'<head>'</script><head>");
        with_charset("<html>|<template><head></template>");
        with_charset("<html>|<textarea><head></textarea>");
    }

    #[test]
    fn an_empty_document_gets_the_tag_at_its_end() {
        with_charset("<!doctype html>\n|");
        with_charset("<html></html>|");
        with_charset("<!doctype html><!-- nothing -->|");
        without_charset("<html><head><title>x</title>|");
    }

    #[test]
    fn heads_before_any_sign_of_a_document_are_waited_out() {
        with_charset("<meta charset=utf-8><html>|<p>");
        with_charset("<title>x</title><link><html><head>|");
        without_charset("<meta charset=utf-8><html><head>|<title>");
        without_charset("<base href=x><title>x</title><html>|<body>");
    }

    #[test]
    fn fragments_are_left_alone() {
        for page in [
            "",
            " ",
            "text",
            "<p>x",
            "{\"a\":1}",
            "<tr><td>x</td></tr>",
            "<script>x()</script>",
            "<!-- c -->",
        ] {
            nowhere(page, Nowhere::Fragment);
        }
        nowhere("<title>x</title><p>y", Nowhere::Fragment);
        nowhere("<textarea>{}</textarea><html>", Nowhere::Fragment);
        nowhere("\u{feff}x", Nowhere::Fragment);
        nowhere("\u{feff}", Nowhere::Fragment);
        check(Markup::Html, false, b"\xff\xfe<\0h\0t\0m\0l\0>\0", Some(Nowhere::Fragment));
        check(Markup::Html, false, b"\xef\xbb", Some(Nowhere::Fragment));
    }

    #[test]
    fn a_document_that_ends_inside_a_construct_has_no_place() {
        for page in ["<html><!-- <head>", "<html><hea", "<html><", "<!doctype html></html", "<html><head a='"]
        {
            nowhere(page, Nowhere::Unfinished);
        }
        check(Markup::Html, false, b"<html><head><title>x", Some(Nowhere::Unfinished));
        check(Markup::Html, false, b"<html><head><title>x</titl", Some(Nowhere::Unfinished));
    }

    #[test]
    fn encodings_that_are_not_ascii_are_left_alone() {
        check(Markup::Html, false, b"<head><meta charset=iso-2022-jp><title>x", Some(Nowhere::Charset));
        check(
            Markup::Html,
            false,
            b"<meta http-equiv=content-type content='text/html;charset=csISO2022JP'><html><head>",
            Some(Nowhere::Charset),
        );
        without_charset("<head><meta charset=utf-16>|<title>x");
        without_charset("<head><meta charset=nobody-knows>|<title>x");
    }

    #[test]
    fn the_limit_is_a_place_and_not_a_chunk() {
        let long = format!("<html><!--{}--><head>", "x".repeat(BYTES_MAX));
        nowhere(&long, Nowhere::TooLong);
        let title = format!("<html><head><title>{}</title><p>", "x".repeat(BYTES_MAX));
        check(Markup::Html, false, title.as_bytes(), Some(Nowhere::TooLong));
        let opening = "<html><!----><head>|";
        let fits = opening.replacen("--", &format!("--{}", "x".repeat(BYTES_MAX + 1 - opening.len())), 1);
        with_charset(&fits);
        nowhere(&fits.replace("<html", "<html ").replace('|', ""), Nowhere::TooLong);
    }

    #[test]
    fn a_giant_token_in_tiny_chunks_is_given_up() {
        let mut parser = Parser::new(Markup::Html, true, BYTES_MAX);
        parser.worked_bytes_max = 1000;
        let page = format!("<!--{}--><html><head>", "x".repeat(BYTES_MAX / 2));
        assert!(matches!(parser.push(&page.as_bytes()[..900]), Step::Undecided { .. }));
        assert_eq!(parser.push(&page.as_bytes()[900..901]), Step::Nowhere(Nowhere::TooLong));
    }

    #[test]
    fn xhtml_must_open_the_plain_way() {
        let ns = "xmlns=\"http://www.w3.org/1999/xhtml\"";
        xhtml(
            &format!(
                "<?xml version=\"1.0\"?>\n<!DOCTYPE html>\n<html {ns}>\n<head>|<meta charset=\"utf-8\"/>"
            ),
            None,
        );
        for page in [
            "<html><head>".to_owned(),
            format!("<html {ns}><head/>"),
            format!("<html {ns}><HEAD>"),
            format!("<html {ns}><body>"),
            format!("<!DOCTYPE html [ <!ENTITY a \"b\"> ]><html {ns}><head>"),
            "<h:html xmlns:h=\"http://www.w3.org/1999/xhtml\"><h:head>".to_owned(),
            format!("<svg><html {ns}><head>"),
        ] {
            xhtml(&page, Some(Nowhere::Ambiguous));
        }
        xhtml(&format!("<html {ns}>"), Some(Nowhere::Unfinished));
    }
}
