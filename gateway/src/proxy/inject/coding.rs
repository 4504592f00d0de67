//! Content codings as streams: decode a page as it arrives, encode it again the same way.
//!
//! Memory stays bounded whatever the upstream sends: output leaves through one fixed buffer, windows are
//! limited, and a page that expands out of all proportion is broken by definition. Knows nothing of HTML.

use bytes::BytesMut;
use compression_codecs::brotli::params::EncoderParams as BrotliParams;
use compression_codecs::core::Level;
use compression_codecs::core::util::{PartialBuffer, WriteBuffer};
use compression_codecs::flate::params::FlateEncoderParams;
use compression_codecs::zstd::params::{CParameter, DParameter};
use compression_codecs::{
    BrotliDecoder, BrotliEncoder, DecodeV2, DeflateDecoder, DeflateEncoder, EncodeV2, GzipDecoder,
    GzipEncoder, ZlibDecoder, ZlibEncoder, ZstdDecoder, ZstdEncoder,
};

/// A content coding the injector can undo and redo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Gzip,
    Brotli,
    Zstd,
    /// By the standard in zlib's wrapping; some servers send a bare stream, which then stays bare.
    Deflate,
}

impl Coding {
    /// From a member of `Content-Encoding` or `Accept-Encoding`.
    pub(super) fn from_token(token: &str) -> Option<Coding> {
        let is = |name: &str| token.eq_ignore_ascii_case(name);
        match () {
            () if is("gzip") || is("x-gzip") => Some(Coding::Gzip),
            () if is("br") => Some(Coding::Brotli),
            () if is("zstd") => Some(Coding::Zstd),
            () if is("deflate") => Some(Coding::Deflate),
            () => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Brotli => "br",
            Coding::Zstd => "zstd",
            Coding::Deflate => "deflate",
        }
    }
}

/// A coding as it is really written, which for `deflate` only the first byte tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Gzip,
    Brotli,
    Zstd,
    Zlib,
    BareDeflate,
}

impl Format {
    pub(super) fn detect(coding: Coding, first: u8) -> Result<Format, Broken> {
        match coding {
            Coding::Gzip => Ok(Format::Gzip),
            // Announces a "large window", which browsers refuse and which may take a gigabyte.
            Coding::Brotli if first & 0x7f == 0x11 => Err(Broken),
            Coding::Brotli => Ok(Format::Brotli),
            Coding::Zstd => Ok(Format::Zstd),
            // A zlib header names method 8 in its low half; a bare stream has block bits there.
            Coding::Deflate if first & 0x0f == 8 => Ok(Format::Zlib),
            Coding::Deflate => Ok(Format::BareDeflate),
        }
    }
}

/// The stream is damaged, expands out of proportion or needs a larger window than browsers allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("broken content coding")]
pub(super) struct Broken;

/// Undoes a coding, piece by piece.
pub(super) struct Decoder {
    format: Format,
    inner: Box<dyn DecodeV2 + Send + Sync>,
    /// The coding's own end mark was read.
    has_ended: bool,
    /// A whole gzip member or zstd frame lies behind; what follows may be one more, or garbage.
    is_past_first_member: bool,
    ignores_rest: bool,
    raw_bytes: u64,
    plain_bytes: u64,
    member_plain_bytes: u64,
    expansion_free_bytes: u64,
}

impl Decoder {
    pub(super) fn new(format: Format) -> Decoder {
        Decoder {
            format,
            inner: match format {
                Format::Gzip => Box::new(GzipDecoder::new()),
                Format::Brotli => Box::new(BrotliDecoder::new()),
                Format::Zstd => {
                    Box::new(ZstdDecoder::new_with_params(&[DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX)]))
                }
                Format::Zlib => Box::new(ZlibDecoder::new()),
                Format::BareDeflate => Box::new(DeflateDecoder::new()),
            },
            has_ended: false,
            is_past_first_member: false,
            ignores_rest: false,
            raw_bytes: 0,
            plain_bytes: 0,
            member_plain_bytes: 0,
            expansion_free_bytes: EXPANSION_FREE_BYTES,
        }
    }

    /// Decodes `raw` through `buffer` into `emit`. After an error, its own or `emit`'s, the decoder must
    /// not be used again.
    pub(super) fn decode<E: From<Broken>>(
        &mut self,
        raw: &[u8],
        buffer: &mut [u8],
        mut emit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.raw_bytes += raw.len() as u64;
        let mut input = PartialBuffer::new(raw);
        // The last round filled the buffer, so the decoder may hold more.
        let mut may_hold_more = false;
        while !self.ignores_rest && (!input.unwritten().is_empty() || may_hold_more) {
            let left = input.unwritten().len();
            if self.has_ended && (left == 0 || !self.next_member()?) {
                break;
            }
            let mut output = WriteBuffer::new_initialized(buffer);
            let result = if left == 0 && self.is_deflate_inside() {
                self.inner.flush(&mut output).map(|_| false)
            } else {
                self.inner.decode(&mut input, &mut output)
            };
            let written = output.written_len();
            may_hold_more = output.has_no_spare_space();
            self.plain_bytes += written as u64;
            self.member_plain_bytes += written as u64;
            match result {
                Ok(has_ended) => self.has_ended = has_ended,
                // Bytes after the end that are no further member are ignored, as browsers do.
                Err(_) if self.is_past_first_member && self.member_plain_bytes == 0 => {
                    self.has_ended = true;
                    self.ignores_rest = true;
                    break;
                }
                Err(_) => return Err(Broken.into()),
            }
            if self.plain_bytes > self.expansion_free_bytes + EXPANSION_MAX * self.raw_bytes {
                return Err(Broken.into());
            }
            if written > 0 {
                emit(&buffer[..written])?;
            } else if input.unwritten().len() == left && !self.has_ended {
                // No progress: with input left a defect, without any the end of what was held.
                if left > 0 {
                    return Err(Broken.into());
                }
                break;
            }
        }
        Ok(())
    }

    /// Whether the stream came to its own end. Asked once, after the last byte.
    pub(super) fn is_complete(&mut self) -> bool {
        // Draining a full buffer can swallow the news that a deflate stream has ended.
        self.has_ended || self.inner.finish(&mut WriteBuffer::new_initialized(&mut [0; 8])).unwrap_or(false)
    }

    /// Begins the next gzip member or zstd frame; a series of them is one stream. False if the coding
    /// knows no such series.
    fn next_member(&mut self) -> Result<bool, Broken> {
        if !matches!(self.format, Format::Gzip | Format::Zstd) {
            self.ignores_rest = true;
            return Ok(false);
        }
        self.inner.reinit().map_err(|_| Broken)?;
        self.has_ended = false;
        self.is_past_first_member = true;
        self.member_plain_bytes = 0;
        Ok(true)
    }

    fn is_deflate_inside(&self) -> bool {
        matches!(self.format, Format::Gzip | Format::Zlib | Format::BareDeflate)
    }
}

/// Applies a coding, piece by piece.
pub(super) struct Encoder(Box<dyn EncodeV2 + Send + Sync>);

impl Encoder {
    pub(super) fn new(format: Format) -> Encoder {
        let flate = FlateEncoderParams::from(Level::Precise(GZIP_LEVEL));
        Encoder(match format {
            Format::Gzip => Box::new(GzipEncoder::new(flate)),
            Format::BareDeflate => Box::new(DeflateEncoder::new(flate)),
            Format::Zlib => Box::new(ZlibEncoder::new(flate)),
            Format::Brotli => Box::new(BrotliEncoder::new(
                BrotliParams::default()
                    .quality(Level::Precise(BROTLI_QUALITY))
                    .window_size(WINDOW_LOG)
                    .text_mode(),
            )),
            Format::Zstd => Box::new(ZstdEncoder::new_with_params(
                ZSTD_LEVEL,
                &[
                    CParameter::window_log(WINDOW_LOG as u32),
                    CParameter::hash_log(ZSTD_TABLE_LOG),
                    CParameter::chain_log(ZSTD_TABLE_LOG),
                ],
            )),
        })
    }

    /// Encodes all of `plain` through `buffer`, appending to `out`.
    pub(super) fn encode(
        &mut self,
        plain: &[u8],
        buffer: &mut [u8],
        out: &mut BytesMut,
    ) -> Result<(), Broken> {
        let mut input = PartialBuffer::new(plain);
        while !input.unwritten().is_empty() {
            let mut output = WriteBuffer::new_initialized(buffer);
            self.0.encode(&mut input, &mut output).map_err(|_| Broken)?;
            let written = output.written_len();
            out.extend_from_slice(&buffer[..written]);
        }
        Ok(())
    }

    /// Makes everything so far decodable at the other end, so that a page streams as its app meant it to.
    pub(super) fn flush(&mut self, buffer: &mut [u8], out: &mut BytesMut) -> Result<(), Broken> {
        self.drain(buffer, out, |encoder, output| encoder.flush(output))
    }

    pub(super) fn finish(&mut self, buffer: &mut [u8], out: &mut BytesMut) -> Result<(), Broken> {
        self.drain(buffer, out, |encoder, output| encoder.finish(output))
    }

    fn drain(
        &mut self,
        buffer: &mut [u8],
        out: &mut BytesMut,
        step: impl Fn(&mut dyn EncodeV2, &mut WriteBuffer<'_>) -> std::io::Result<bool>,
    ) -> Result<(), Broken> {
        loop {
            let mut output = WriteBuffer::new_initialized(buffer);
            let is_done = step(&mut *self.0, &mut output).map_err(|_| Broken)?;
            let written = output.written_len();
            out.extend_from_slice(&buffer[..written]);
            if is_done {
                return Ok(());
            }
            if written == 0 {
                return Err(Broken);
            }
        }
    }
}

/// Of the buffer that output goes through.
pub(super) const BUFFER_BYTES: usize = 16 * 1024;

/// A page may grow this much at any rate: no real one is longer and repeats itself as much …
const EXPANSION_FREE_BYTES: u64 = 256 * 1024 * 1024;
/// … and beyond that by this factor, which is all that deflate can do. Memory is bounded anyway; this bounds
/// the work that a chunk can cause.
const EXPANSION_MAX: u64 = 1032;
/// 8 MiB: what RFC 9659 allows a `Content-Encoding: zstd` to ask of its reader.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

// Levels for encoding in flight, where a page's first byte counts more than its last kilobyte.
const GZIP_LEVEL: i32 = 5;
const BROTLI_QUALITY: i32 = 4;
const ZSTD_LEVEL: i32 = 2;
/// 256 KiB, larger than most pages; the encoders' memory is a small multiple of it.
const WINDOW_LOG: i32 = 18;
/// 64 KiB a table: they are cleared for every page, which for a small one is most of the work.
const ZSTD_TABLE_LOG: u32 = 14;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const FORMATS: [Format; 5] =
        [Format::Gzip, Format::Brotli, Format::Zstd, Format::Zlib, Format::BareDeflate];

    pub(in super::super) fn encode_all(coding: Coding, plain: &[u8]) -> Vec<u8> {
        encode(Format::detect(coding, 8).unwrap(), plain)
    }

    /// None if the stream is damaged or unfinished.
    pub(in super::super) fn decode_all(coding: Coding, raw: &[u8]) -> Option<Vec<u8>> {
        let format = Format::detect(coding, *raw.first()?).ok()?;
        decode(format, [raw])
    }

    fn encode(format: Format, plain: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(format);
        let (mut buffer, mut out) = (vec![0; BUFFER_BYTES], BytesMut::new());
        encoder.encode(plain, &mut buffer, &mut out).unwrap();
        encoder.finish(&mut buffer, &mut out).unwrap();
        out.to_vec()
    }

    fn decode<'a>(format: Format, chunks: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
        let mut decoder = Decoder::new(format);
        // Small and odd, so that every way of running full is met.
        let mut buffer = vec![0; 37];
        let mut plain = Vec::new();
        for chunk in chunks {
            decoder
                .decode(chunk, &mut buffer, |block| {
                    plain.extend_from_slice(block);
                    Ok::<(), Broken>(())
                })
                .ok()?;
        }
        decoder.is_complete().then_some(plain)
    }

    #[test]
    fn what_is_encoded_comes_back_in_pieces_of_any_size() {
        for format in FORMATS {
            for length in [0, 1, 36, 37, 38, 74, 1000, 70_000] {
                let plain: Vec<u8> = (0..length).map(|i: u64| (i * i / 7) as u8).collect();
                let raw = encode(format, &plain);
                for size in [1, 2, 37, 1 << 20] {
                    let back = decode(format, raw.chunks(size));
                    assert_eq!(back.as_deref(), Some(&plain[..]), "{format:?} {length} by {size}");
                }
                let cut = decode(format, [&raw[..raw.len() - 1]]);
                assert_eq!(cut, None, "{format:?} {length} without its last byte");
            }
        }
    }

    #[test]
    fn a_series_of_members_is_one_stream_and_garbage_after_it_is_ignored() {
        for format in [Format::Gzip, Format::Zstd] {
            let series = [encode(format, b"one "), encode(format, b"two")].concat();
            let with_garbage = [&series[..], b"garbage"].concat();
            for size in [1, 5, 1 << 20] {
                assert_eq!(
                    decode(format, series.chunks(size)).as_deref(),
                    Some(&b"one two"[..]),
                    "{format:?}"
                );
                assert_eq!(
                    decode(format, with_garbage.chunks(size)).as_deref(),
                    Some(&b"one two"[..]),
                    "{format:?}"
                );
            }
        }
        for format in [Format::Brotli, Format::Zlib] {
            let with_garbage = [&encode(format, b"one")[..], b"garbage"].concat();
            assert_eq!(decode(format, with_garbage.chunks(1)).as_deref(), Some(&b"one"[..]), "{format:?}");
        }
    }

    #[test]
    fn windows_larger_than_browsers_allow_are_refused() {
        assert_eq!(Format::detect(Coding::Brotli, 0x11), Err(Broken));
        assert_eq!(Format::detect(Coding::Brotli, 0x91), Err(Broken));
        // A zstd frame header that asks for a 16 MiB window.
        assert_eq!(decode(Format::Zstd, [&b"\x28\xb5\x2f\xfd\x00\x70\x01\x00\x00"[..]]), None);
    }

    #[test]
    fn expansion_out_of_all_proportion_is_broken_off() {
        for format in [Format::Brotli, Format::Zstd] {
            let raw = encode(format, &vec![b' '; 3 << 20]);
            for (free_bytes, expected) in [(4 << 20, Ok(())), (1 << 20, Err(Broken))] {
                let mut decoder = Decoder::new(format);
                decoder.expansion_free_bytes = free_bytes;
                assert_eq!(decoder.decode(&raw, &mut [0; BUFFER_BYTES], |_| Ok::<(), Broken>(())), expected);
            }
        }
    }

    #[test]
    fn the_first_byte_tells_the_two_kinds_of_deflate() {
        assert_eq!(Format::detect(Coding::Deflate, encode(Format::Zlib, b"x")[0]), Ok(Format::Zlib));
        assert_eq!(
            Format::detect(Coding::Deflate, encode(Format::BareDeflate, b"x")[0]),
            Ok(Format::BareDeflate)
        );
    }
}
