//! A shortcut for pages that open the way nearly all do: doctype, html, head, perhaps a charset.
//!
//! It understands a small, strict grammar in which every byte has one meaning in any HTML parser, and
//! returns nothing on the least surprise; lol_html then reads the page from its first byte. The soup test
//! holds the two against each other.

/// The insertion point, if all of `page`'s opening is here and plain. `charset_known`: see `Locator::new`.
pub(super) fn scan(page: &[u8], charset_known: bool) -> Option<usize> {
    let mut cursor = Cursor { page, at: 0 };
    let has_bom = cursor.takes(b"\xef\xbb\xbf");
    cursor.skip_space();
    if cursor.takes(b"<!doctype") {
        // The first `>` ends a doctype even inside quotes.
        cursor.at += cursor.rest().iter().take(OPENING_BYTES_MAX).position(|byte| *byte == b'>')? + 1;
        cursor.skip_space();
    }
    if cursor.takes(b"<html") {
        cursor.attributes(|_, _| {})?;
        cursor.skip_space();
    }
    if !cursor.takes(b"<head") {
        return None;
    }
    cursor.attributes(|_, _| {})?;
    if charset_known || has_bom {
        return Some(cursor.at);
    }
    loop {
        cursor.skip_space();
        if cursor.at >= OPENING_BYTES_MAX || !cursor.takes(b"<meta") {
            return None;
        }
        let (mut is_utf_8, mut is_plain) = (false, true);
        cursor.attributes(|name, value| {
            is_utf_8 |= name.eq_ignore_ascii_case(b"charset") && value.eq_ignore_ascii_case(b"utf-8");
            is_plain &= is_utf_8 || !name.eq_ignore_ascii_case(b"charset");
            is_plain &= !name.eq_ignore_ascii_case(b"http-equiv");
        })?;
        if !is_plain {
            return None;
        }
        if is_utf_8 {
            return Some(cursor.at);
        }
    }
}

struct Cursor<'p> {
    page: &'p [u8],
    at: usize,
}

impl<'p> Cursor<'p> {
    fn rest(&self) -> &'p [u8] {
        &self.page[self.at..]
    }

    fn takes(&mut self, expected: &[u8]) -> bool {
        let is_there =
            self.rest().get(..expected.len()).is_some_and(|found| found.eq_ignore_ascii_case(expected));
        if is_there {
            self.at += expected.len();
        }
        is_there
    }

    fn skip_space(&mut self) {
        self.at += run(self.rest(), is_space);
    }

    /// Reads from behind a tag's name to behind its `>`. Attributes are separated by space, have plain names
    /// and values without `<` or `>`, quoted or of name characters.
    fn attributes(&mut self, mut visit: impl FnMut(&[u8], &[u8])) -> Option<()> {
        loop {
            let space = run(self.rest(), is_space);
            self.at += space;
            if self.takes(b">") {
                return Some(());
            }
            if space > 0 && self.takes(b"/>") {
                return Some(());
            }
            let name = &self.rest()[..run(self.rest(), is_name)];
            if space == 0 || name.is_empty() || self.at > OPENING_BYTES_MAX {
                return None;
            }
            self.at += name.len();
            let mut value = &[][..];
            if self.takes(b"=") {
                value = self.value()?;
            }
            visit(name, value);
        }
    }

    fn value(&mut self) -> Option<&'p [u8]> {
        let rest = self.rest();
        let quote = *rest.first()?;
        if quote == b'"' || quote == b'\'' {
            let value = &rest[1..][..run(&rest[1..], |byte| byte != quote && byte != b'<' && byte != b'>')];
            self.at += 1 + value.len();
            return self.takes(&[quote]).then_some(value);
        }
        let value = &rest[..run(rest, is_name)];
        self.at += value.len();
        (!value.is_empty()).then_some(value)
    }
}

/// How many bytes from the start are of a kind.
fn run(bytes: &[u8], is_kind: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|byte| !is_kind(*byte)).unwrap_or(bytes.len())
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b'\x0c')
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b':')
}

/// A longer opening is not the plain one; also keeps each step cheap. Browsers look no further for a charset.
const OPENING_BYTES_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// `page` holds a `|` where the tag belongs, or none if the shortcut must not answer.
    #[track_caller]
    fn check(charset_known: bool, page: &str) {
        let html = page.replace('|', "");
        assert_eq!(scan(html.as_bytes(), charset_known), page.find('|'), "{page}");
        // With a byte less than up to the answer there is none yet.
        if let Some(offset) = page.find('|') {
            for end in 0..offset {
                assert_eq!(scan(&html.as_bytes()[..end], charset_known), None, "{end} of {page}");
            }
        }
    }

    #[test]
    fn plain_openings_are_understood() {
        check(true, "<!doctype html>\n<html lang=\"en\" class='a b' dir=ltr hidden >\n<head>|<title>");
        check(true, "<!DOCTYPE html PUBLIC \"x\" \"y\"><HTML xml:lang=en><HEAD profile='x'>|");
        check(true, "\r\n\t<html><head/>");
        check(true, "<head>|");
        check(false, "<!doctype html><html><head>\n<meta charset=\"UTF-8\">|<title>");
        check(
            false,
            "<html><head><meta name=viewport content='width=device-width, initial-scale=1'><meta charset=utf-8 />|",
        );
        check(false, "\u{feff}<html><head>|<title>");
    }

    #[test]
    fn the_least_surprise_is_left_to_the_parser() {
        for page in [
            "",
            "<!doctype html>",
            "<html>",
            "<html><body>",
            "<html><title>",
            "<header>",
            "<html><header>",
            "<!-- c --><html><head>",
            "<html a=\"b><head>",
            "<html a='<'><head>",
            "<html a=b\"c><head>",
            "<html a = b><head>",
            "<html a=><head>",
            "<html/><head>",
            "<html a/b><head>",
            "<html\"><head>",
            "<html><!-- c --><head>",
            "text<head>",
            "<html>\0<head>",
            "<html a=\"b\"c=\"d\"><head>",
        ] {
            check(true, page);
            check(false, page);
        }
        for page in [
            "<head>",
            "<head><title>",
            "<head><meta charset=iso-2022-jp>",
            "<head><meta charset=latin1>",
            "<head><meta http-equiv=content-type content='text/html'>",
            "<head><meta charset>",
            "<head><meta charset=latin1 charset=utf-8>",
            "<head><meta name=x><link>",
        ] {
            check(false, page);
        }
        let long = format!("<html a=\"{}\" b><head>", "x".repeat(OPENING_BYTES_MAX));
        check(true, &long);
    }
}
