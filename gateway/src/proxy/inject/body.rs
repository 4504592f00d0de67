//! The tag's way into a response body, chunk by chunk.
//!
//! Invariants: take the tag away and the page's own bytes are left, whatever happened; once the tag is
//! placed nothing is parsed any more; a promised length is kept. This file knows no header.

use super::coding::{BUFFER_BYTES, Broken, Coding, Decoder, Encoder, Format};
use super::locate::{Locator, Markup, Nowhere, Step};
use bytes::{Bytes, BytesMut};

/// One response being injected into. `Send` and `Sync`, so it can live in a proxy's per-request state.
pub struct Injection {
    tag: Bytes,
    /// Length the upstream promised; the client was promised so much and the tag's length more.
    promised_bytes: Option<u64>,
    received_bytes: u64,
    first_bytes: [u8; 2],
    outcome: Outcome,
    stage: Stage,
}

/// How an injection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Not decided yet; at the end of a response it means that the body broke off first.
    Pending,
    Injected,
    /// The body is a fragment of HTML and not a document.
    Fragment,
    /// The document has no place for a tag: it ends inside a construct, or its markup is ambiguous.
    NoInsertionPoint,
    /// No insertion point within `collector.inject_bytes_max`.
    TooLong,
    /// A `<meta>` names an encoding in which the tag would mean something else.
    Charset,
    /// The content coding could not be undone.
    Broken(Coding),
}

impl Outcome {
    /// Value of the label `reason` or `outcome` of a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Pending => "incomplete",
            Outcome::Injected => "injected",
            Outcome::Fragment => "fragment",
            Outcome::NoInsertionPoint => "no_insertion_point",
            Outcome::TooLong => "too_long",
            Outcome::Charset => "charset",
            Outcome::Broken(Coding::Gzip) => "broken_gzip",
            Outcome::Broken(Coding::Brotli) => "broken_br",
            Outcome::Broken(Coding::Zstd) => "broken_zstd",
            Outcome::Broken(Coding::Deflate) => "broken_deflate",
        }
    }
}

impl From<Nowhere> for Outcome {
    fn from(reason: Nowhere) -> Outcome {
        match reason {
            Nowhere::Fragment => Outcome::Fragment,
            Nowhere::TooLong => Outcome::TooLong,
            Nowhere::Unfinished | Nowhere::Ambiguous => Outcome::NoInsertionPoint,
            Nowhere::Charset => Outcome::Charset,
        }
    }
}

/// What `plan` found out about a response.
pub(super) struct Brief {
    pub(super) tag: Bytes,
    pub(super) markup: Markup,
    pub(super) charset_known: bool,
    pub(super) coding: Option<Coding>,
    /// Only without a coding.
    pub(super) promised_bytes: Option<u64>,
    pub(super) bytes_max: usize,
}

impl Injection {
    pub(super) fn new(brief: Brief) -> Injection {
        let locator = Locator::new(brief.markup, brief.charset_known, brief.bytes_max);
        Injection {
            tag: brief.tag,
            promised_bytes: brief.promised_bytes,
            received_bytes: 0,
            first_bytes: [0; 2],
            outcome: Outcome::Pending,
            stage: match brief.coding {
                None => {
                    Stage::Searching(Box::new(Searching { locator, held: BytesMut::new(), passed_bytes: 0 }))
                }
                Some(coding) => Stage::Deciding(Box::new(Deciding {
                    coding,
                    stream: None,
                    locator,
                    raw: BytesMut::new(),
                    plain: BytesMut::new(),
                    bytes_max: brief.bytes_max,
                    buffers: Buffers::new(),
                })),
            },
        }
    }

    /// Replaces a chunk of the body in place; `end` marks the last one. Without a chunk to send it leaves
    /// `None`. Never fails: where the tag cannot go, the bytes pass untouched, and `outcome` tells.
    ///
    /// A body that ends in trailers ends without `end`: feed `None` with `end` before the trailers then.
    pub fn feed(&mut self, chunk: &mut Option<Bytes>, end: bool) {
        let data = chunk.take().unwrap_or_default();
        self.note(&data);
        let mut output = match std::mem::replace(&mut self.stage, Stage::Through) {
            Stage::Through => data,
            Stage::Searching(searching) => self.search(searching, data, end),
            Stage::Deciding(deciding) => self.decide(deciding, data, end),
            Stage::Recoding(recoding) => self.recode(recoding, data, end),
            Stage::Silent => {
                self.stage = Stage::Silent;
                Bytes::new()
            }
        };
        if end && self.owes_padding() {
            output = pad(output, self.first_bytes, self.tag.len());
        }
        if !output.is_empty() {
            *chunk = Some(output);
        }
    }

    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    fn note(&mut self, data: &Bytes) {
        for (place, byte) in self.first_bytes.iter_mut().skip(self.received_bytes.min(2) as usize).zip(data) {
            *place = *byte;
        }
        self.received_bytes += data.len() as u64;
    }

    /// The client waits for the tag's length although there is no tag. A body that ended short ends short.
    fn owes_padding(&self) -> bool {
        self.outcome != Outcome::Injected && self.promised_bytes == Some(self.received_bytes)
    }

    fn search(&mut self, mut searching: Box<Searching>, data: Bytes, end: bool) -> Bytes {
        let mut step = searching.locator.push(&data);
        // A body that ends before its promised length was cut off: nothing may be appended to it.
        let is_whole = self.promised_bytes.is_none_or(|promised| promised == self.received_bytes);
        if let (Step::Undecided { .. }, true, true) = (step, end, is_whole) {
            step = searching.locator.finish();
        }
        let start = searching.passed_bytes;
        match step {
            Step::At(offset) if offset >= start => {
                self.outcome = Outcome::Injected;
                let all = join(searching.held, data);
                splice(&all, offset - start, &self.tag)
            }
            Step::At(_) => {
                debug_assert!(false, "insertion point in bytes already sent");
                self.outcome = Outcome::NoInsertionPoint;
                join(searching.held, data)
            }
            Step::Nowhere(reason) => {
                self.outcome = reason.into();
                join(searching.held, data)
            }
            Step::Undecided { .. } if end => join(searching.held, data),
            Step::Undecided { settled } => {
                let passing_bytes = (settled - start) as usize;
                let passing = if searching.held.is_empty() && passing_bytes == data.len() {
                    data
                } else {
                    searching.held.extend_from_slice(&data);
                    searching.held.split_to(passing_bytes.min(searching.held.len())).freeze()
                };
                searching.passed_bytes += passing.len() as u64;
                self.stage = Stage::Searching(searching);
                passing
            }
        }
    }

    fn decide(&mut self, mut deciding: Box<Deciding>, data: Bytes, end: bool) -> Bytes {
        match deciding.feed(&data, &self.tag, end) {
            Ok(Some((recoding, output))) => {
                self.outcome = Outcome::Injected;
                if !end {
                    self.stage = Stage::Recoding(Box::new(recoding));
                }
                output.freeze()
            }
            Ok(None) if !end && deciding.raw.len() + data.len() <= deciding.bytes_max => {
                deciding.raw.extend_from_slice(&data);
                self.stage = Stage::Deciding(deciding);
                Bytes::new()
            }
            // Nothing was sent yet, so whatever went wrong the original bytes can go out as they came.
            Ok(None) if end => join(deciding.raw, data),
            Ok(None) => {
                self.outcome = Outcome::TooLong;
                join(deciding.raw, data)
            }
            Err(outcome) => {
                self.outcome = outcome;
                join(deciding.raw, data)
            }
        }
    }

    fn recode(&mut self, mut recoding: Box<Recoding>, data: Bytes, end: bool) -> Bytes {
        let mut output = BytesMut::new();
        let result = recoding.feed(&data, &mut output, end);
        match result {
            Ok(()) if end => {}
            Ok(()) => self.stage = Stage::Recoding(recoding),
            Err(Broken) => {
                // The end mark is withheld: the client sees a stream cut off, as it would have without us.
                self.outcome = Outcome::Broken(recoding.coding);
                self.stage = Stage::Silent;
            }
        }
        output.freeze()
    }
}

enum Stage {
    Searching(Box<Searching>),
    Deciding(Box<Deciding>),
    Recoding(Box<Recoding>),
    /// Nothing left to do.
    Through,
    /// A coded body broke after its first bytes were re-encoded; nothing more can be sent.
    Silent,
}

/// An uncoded body in front of its insertion point.
struct Searching {
    locator: Locator,
    /// Received, but the insertion point may still lie in it: an unfinished tag, mostly. Bounded by the
    /// locator's limit.
    held: BytesMut,
    passed_bytes: u64,
}

/// A coded body in front of its insertion point. Nothing of it is sent yet, so that the original bytes can
/// still pass untouched; no visible content waits for it, as the insertion point comes before all of that.
struct Deciding {
    coding: Coding,
    stream: Option<(Format, Decoder)>,
    locator: Locator,
    raw: BytesMut,
    /// Bounded by the locator's limit and one buffer.
    plain: BytesMut,
    bytes_max: usize,
    buffers: Buffers,
}

impl Deciding {
    /// Some: decided, and the output so far. An error says why the page passes untouched.
    fn feed(&mut self, data: &[u8], tag: &[u8], end: bool) -> Result<Option<(Recoding, BytesMut)>, Outcome> {
        let broken = Outcome::Broken(self.coding);
        let (format, mut decoder) = match (self.stream.take(), data.first()) {
            (Some(stream), _) => stream,
            (None, None) => return Ok(None),
            (None, Some(first)) => {
                let format = Format::detect(self.coding, *first).map_err(|_| broken)?;
                (format, Decoder::new(format))
            }
        };
        let Buffers { decoding, encoding } = &mut self.buffers;
        let locator = &mut self.locator;
        let plain = &mut self.plain;
        let mut encoder: Option<Encoder> = None;
        let mut output = BytesMut::new();
        decoder
            .decode(data, decoding, |block| match &mut encoder {
                Some(encoder) => encoder.encode(block, encoding, &mut output).map_err(Stop::from),
                None => {
                    plain.extend_from_slice(block);
                    match locator.push(block) {
                        Step::Undecided { .. } => Ok(()),
                        Step::Nowhere(reason) => Err(Stop::Nowhere(reason)),
                        Step::At(offset) => {
                            let mut new = Encoder::new(format);
                            new.encode(&splice(plain, offset, tag), encoding, &mut output)?;
                            encoder = Some(new);
                            Ok(())
                        }
                    }
                }
            })
            .map_err(|stop| stop.outcome(self.coding))?;
        let is_complete = end && decoder.is_complete();
        if encoder.is_none() && is_complete {
            let offset = match locator.finish() {
                Step::At(offset) => offset,
                Step::Nowhere(reason) => return Err(reason.into()),
                Step::Undecided { .. } => return Err(Outcome::NoInsertionPoint),
            };
            let mut new = Encoder::new(format);
            new.encode(&splice(plain, offset, tag), encoding, &mut output).map_err(|_| broken)?;
            encoder = Some(new);
        }
        let Some(mut encoder) = encoder else {
            self.stream = Some((format, decoder));
            return Ok(None);
        };
        if is_complete {
            encoder.finish(encoding, &mut output).map_err(|_| broken)?;
        } else {
            encoder.flush(encoding, &mut output).map_err(|_| broken)?;
        }
        let buffers = std::mem::replace(&mut self.buffers, Buffers::empty());
        Ok(Some((Recoding { coding: self.coding, decoder, encoder, buffers }, output)))
    }
}

/// A coded body behind its insertion point.
struct Recoding {
    coding: Coding,
    decoder: Decoder,
    encoder: Encoder,
    buffers: Buffers,
}

impl Recoding {
    fn feed(&mut self, data: &[u8], output: &mut BytesMut, end: bool) -> Result<(), Broken> {
        let Buffers { decoding, encoding } = &mut self.buffers;
        let encoder = &mut self.encoder;
        let result = self.decoder.decode(data, decoding, |block| encoder.encode(block, encoding, output));
        if result.is_ok() && end && self.decoder.is_complete() {
            return encoder.finish(encoding, output);
        }
        encoder.flush(encoding, output)?;
        result
    }
}

/// Why a coded page passes untouched.
enum Stop {
    Broken,
    Nowhere(Nowhere),
}

impl From<Broken> for Stop {
    fn from(Broken: Broken) -> Stop {
        Stop::Broken
    }
}

impl Stop {
    fn outcome(self, coding: Coding) -> Outcome {
        match self {
            Stop::Broken => Outcome::Broken(coding),
            Stop::Nowhere(reason) => reason.into(),
        }
    }
}

/// Where decoders and encoders write.
struct Buffers {
    decoding: Box<[u8]>,
    encoding: Box<[u8]>,
}

impl Buffers {
    fn new() -> Buffers {
        let buffer = || vec![0; BUFFER_BYTES].into_boxed_slice();
        Buffers { decoding: buffer(), encoding: buffer() }
    }

    fn empty() -> Buffers {
        Buffers { decoding: Box::default(), encoding: Box::default() }
    }
}

fn join(held: BytesMut, data: Bytes) -> Bytes {
    if held.is_empty() {
        return data;
    }
    let mut all = held;
    all.extend_from_slice(&data);
    all.freeze()
}

fn splice(bytes: &[u8], offset: u64, tag: &[u8]) -> Bytes {
    let (before, after) = bytes.split_at((offset as usize).min(bytes.len()));
    let mut all = BytesMut::with_capacity(bytes.len() + tag.len());
    all.extend_from_slice(before);
    all.extend_from_slice(tag);
    all.extend_from_slice(after);
    all.freeze()
}

/// Spaces after the document: they change nothing anyone sees, even inside a construct left open. In UTF-16
/// a space is two bytes, and the tag's length is even for its sake.
fn pad(body: Bytes, first_bytes: [u8; 2], pad_bytes: usize) -> Bytes {
    let space: [u8; 2] = match first_bytes {
        [0xff, 0xfe] => [b' ', 0],
        [0xfe, 0xff] => [0, b' '],
        [byte, 0] if byte != 0 => [b' ', 0],
        [0, byte] if byte != 0 => [0, b' '],
        _ => [b' ', b' '],
    };
    let mut all = BytesMut::with_capacity(body.len() + pad_bytes);
    all.extend_from_slice(&body);
    all.extend(space.iter().cycle().take(pad_bytes));
    all.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::coding::tests::{decode_all, encode_all};
    use super::*;

    const TAG: &str = "<script src=x defer></script>.";
    const BYTES_MAX: usize = 1024;
    const CODINGS: [Coding; 4] = [Coding::Gzip, Coding::Brotli, Coding::Zstd, Coding::Deflate];

    fn injection(coding: Option<Coding>, promised_bytes: Option<u64>) -> Injection {
        Injection::new(Brief {
            tag: Bytes::from_static(TAG.as_bytes()),
            markup: Markup::Html,
            charset_known: true,
            coding,
            promised_bytes,
            bytes_max: BYTES_MAX,
        })
    }

    fn run<'a>(mut injection: Injection, chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Outcome) {
        let mut output = Vec::new();
        let mut feed = |data: Option<Bytes>, end| {
            let mut chunk = data;
            injection.feed(&mut chunk, end);
            assert!(chunk.as_ref().is_none_or(|chunk| !chunk.is_empty()));
            output.extend_from_slice(&chunk.unwrap_or_default());
        };
        for chunk in chunks {
            feed(Some(Bytes::copy_from_slice(chunk)), false);
        }
        feed(None, true);
        let outcome = injection.outcome();
        (output, outcome)
    }

    /// `expected` is the page with `|` where the tag is; the page itself is `expected` without it. Checked
    /// with and without a known length and at every cut.
    #[track_caller]
    fn check(expected: &[u8], outcome: Outcome) {
        let page: Vec<u8> = expected.iter().copied().filter(|byte| *byte != b'|').collect();
        let injected = String::from_utf8_lossy(expected).replace('|', TAG);
        let is_injected = outcome == Outcome::Injected;
        let plain = if is_injected { injected.as_bytes() } else { &page[..] };
        let mut padded = plain.to_vec();
        if !is_injected {
            padded.extend(std::iter::repeat_n(b' ', TAG.len()));
        }
        for cut in 0..=page.len() {
            let (first, second) = page.split_at(cut);
            let open = run(injection(None, None), [first, second]);
            assert_eq!((open.0.as_slice(), open.1), (plain, outcome), "cut at {cut}");
            let promised = run(injection(None, Some(page.len() as u64)), [first, second]);
            assert_eq!((promised.0.as_slice(), promised.1), (&padded[..], outcome), "cut at {cut}, promised");
        }
        for coding in CODINGS {
            let coded = encode_all(coding, &page);
            for cut in 0..=coded.len() {
                let (first, second) = coded.split_at(cut);
                let (output, ended) = run(injection(Some(coding), None), [first, second]);
                assert_eq!(ended, outcome, "{coding:?} cut at {cut}");
                if is_injected {
                    assert_eq!(
                        decode_all(coding, &output).as_deref(),
                        Some(plain),
                        "{coding:?} cut at {cut}"
                    );
                } else {
                    assert_eq!(output, coded, "{coding:?} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn pages_get_the_tag_in_every_coding_however_they_are_cut() {
        check(b"<!doctype html><html><head>|<title>x</title></head><body>hello", Outcome::Injected);
        check(b"<html>|<body>x", Outcome::Injected);
        check(b"<!doctype html>\n|", Outcome::Injected);
    }

    #[test]
    fn pages_without_a_place_pass_untouched() {
        check(b"<p>fragment", Outcome::Fragment);
        check(b"<html><!-- open", Outcome::NoInsertionPoint);
        check(format!("<html><!--{}", "x".repeat(BYTES_MAX)).as_bytes(), Outcome::TooLong);
    }

    #[test]
    fn a_body_cut_short_is_not_lengthened() {
        for page in ["<html><head>", "<html>", "<p>x", "<html><hea"] {
            let (output, _) = run(injection(None, Some(1000)), [page.as_bytes()]);
            let output = String::from_utf8(output).unwrap();
            assert_eq!(output.replace(TAG, ""), page);
            assert!(!output.ends_with(' '));
        }
        let (output, outcome) = run(injection(None, Some(1000)), [b"<!doctype html>".as_slice()]);
        assert_eq!((output.as_slice(), outcome), (b"<!doctype html>".as_slice(), Outcome::Pending));
    }

    #[test]
    fn padding_is_blank_in_utf_16_too() {
        for (mark, space) in [
            ([0xff, 0xfe], [b' ', 0]),
            ([0xfe, 0xff], [0, b' ']),
            ([b'<', 0], [b' ', 0]),
            ([0, b'<'], [0, b' ']),
        ] {
            let page = [&mark[..], &space, &space].concat();
            let (output, outcome) = run(injection(None, Some(6)), page.chunks(1));
            assert_eq!(outcome, Outcome::Fragment);
            assert_eq!(output.len(), 6 + TAG.len());
            assert!(output[2..].chunks(2).all(|unit| unit == space));
        }
    }

    #[test]
    fn a_broken_start_passes_untouched() {
        for coding in CODINGS {
            for garbage in [
                &b"\x11\xff\xff\xff<html><head>"[..],
                b"<html><head>plain text in truth",
                b"\x1f\x8b\x08\xe0",
            ] {
                let (output, outcome) = run(injection(Some(coding), None), garbage.chunks(5));
                assert_eq!(output, garbage, "{coding:?}");
                assert!(
                    matches!(outcome, Outcome::Broken(_) | Outcome::Pending | Outcome::Fragment),
                    "{outcome:?}"
                );
            }
            assert_eq!(run(injection(Some(coding), None), []), (Vec::new(), Outcome::Pending));
        }
    }

    #[test]
    fn a_stream_that_breaks_later_is_cut_off_and_never_ended_well() {
        for coding in CODINGS {
            let mut upstream = Encoder::new(Format::detect(coding, 8).unwrap());
            let (mut buffer, mut coded) = (vec![0; BUFFER_BYTES], BytesMut::new());
            upstream.encode(b"<html><head>", &mut buffer, &mut coded).unwrap();
            upstream.flush(&mut buffer, &mut coded).unwrap();
            let first = coded.split().freeze();
            upstream.encode(&noise(60_000), &mut buffer, &mut coded).unwrap();
            upstream.finish(&mut buffer, &mut coded).unwrap();
            let truncated = run(injection(Some(coding), None), [&first[..], &coded[..coded.len() - 1]]);
            assert_eq!(truncated.1, Outcome::Injected, "{coding:?}");
            assert_eq!(decode_all(coding, &truncated.0), None, "{coding:?}");
            coded[0..200].fill(0xff);
            let (output, outcome) = run(injection(Some(coding), None), [&first[..], &coded]);
            assert_eq!(decode_all(coding, &output), None, "{coding:?}");
            assert_eq!(outcome, Outcome::Broken(coding));
        }
    }

    #[test]
    fn a_coded_page_streams_on_behind_its_tag() {
        for coding in CODINGS {
            let mut upstream = Encoder::new(Format::detect(coding, 8).unwrap());
            let mut buffer = vec![0; BUFFER_BYTES];
            let mut injection = injection(Some(coding), None);
            let mut client = Decoder::new(Format::detect(coding, 8).unwrap());
            let mut seen = Vec::new();
            for part in ["<html><head>", "<title>one</title>", "<p>two", "<p>three"] {
                let mut sent = BytesMut::new();
                upstream.encode(part.as_bytes(), &mut buffer, &mut sent).unwrap();
                upstream.flush(&mut buffer, &mut sent).unwrap();
                let mut chunk = Some(sent.freeze());
                injection.feed(&mut chunk, false);
                let received = chunk.unwrap();
                client
                    .decode(&received, &mut buffer, |block| {
                        seen.extend_from_slice(block);
                        Ok::<(), Broken>(())
                    })
                    .unwrap();
                let seen = String::from_utf8_lossy(&seen);
                assert!(seen.ends_with(part) || seen.ends_with(TAG), "{coding:?} {seen}");
            }
        }
    }

    #[test]
    fn an_injection_may_live_in_shared_state() {
        fn is_send_and_sync<T: Send + Sync>(_: &T) {}
        is_send_and_sync(&injection(None, None));
    }

    /// Bytes that do not compress.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            b' ' + (state % 90) as u8
        };
        (0..length).map(|_| next()).collect()
    }
}
