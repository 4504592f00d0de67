//! The process's own log: one line an event on standard error, JSON or text.
//!
//! Nobody outside can forge a line or move the terminal's cursor: control characters are written
//! as `\uNNNN`. Must not know: what is logged. Tokens, cookies, bodies, typed text and addresses have
//! no business here at all.

use crate::config::{Log, LogFormat};
use std::io::{self, Write};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("log.level is no log filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("a log is already running in this process")]
    Running,
}

/// Starts the log and sends panics to it, one line each.
pub fn init(log: &Log) -> Result<(), LoggingError> {
    let filter = EnvFilter::try_new(&log.level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Stderr);
    match log.format {
        LogFormat::Json => {
            builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
        }
        LogFormat::Text => builder.with_target(false).try_init(),
    }
    .map_err(|_| LoggingError::Running)?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(panic.place = place, panic.message = message, "a part of the gateway panicked");
    }));
    Ok(())
}

struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = OneLine<io::StderrLock<'static>>;
    fn make_writer(&'a self) -> Self::Writer {
        OneLine(io::stderr().lock())
    }
}

/// Lets one line through: the formatter hands over a whole event at once, so every control character
/// but the last line feed came from a field.
struct OneLine<W: Write>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (body, end) = match line.split_last() {
            Some((b'\n', body)) => (body, "\n"),
            _ => (line, ""),
        };
        let text = String::from_utf8_lossy(body);
        let mut safe = String::with_capacity(text.len() + 1);
        for c in text.chars() {
            // Also the separators that some viewers break lines at.
            if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
                // In the form that JSON reads back.
                safe += &format!("\\u{:04x}", u32::from(c));
            } else {
                safe.push(c);
            }
        }
        safe += end;
        self.0.write_all(safe.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const HOSTILE: &str = "a\r\nb\x1b[2Jc\u{9b}d\u{2028}e\"}";

    fn logged(json: bool) -> String {
        let shared = Shared::default();
        let writer = {
            let shared = shared.clone();
            move || OneLine(shared.clone())
        };
        let builder = tracing_subscriber::fmt().with_ansi(false).with_writer(writer);
        let log = || {
            let shown = HOSTILE;
            tracing::info!(field = shown, display = %HOSTILE, "message {}", HOSTILE);
        };
        match json {
            true => tracing::subscriber::with_default(builder.json().flatten_event(true).finish(), log),
            false => tracing::subscriber::with_default(builder.finish(), log),
        }
        let bytes = shared.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn hostile_text_stays_one_line_without_control_characters() {
        for json in [false, true] {
            let line = logged(json);
            let body = line.strip_suffix('\n').unwrap();
            assert!(!body.chars().any(|c| c.is_control() || c == '\u{2028}'), "{body:?}");
            assert!(body.contains('b') && body.contains("[2Jc"), "the text itself is kept: {body:?}");
        }
    }

    #[test]
    fn a_json_line_is_json_and_keeps_the_text() {
        let line: serde_json::Value = serde_json::from_str(&logged(true)).unwrap();
        assert_eq!(line["field"], HOSTILE);
        assert_eq!(line["message"], format!("message {HOSTILE}"));
    }
}
