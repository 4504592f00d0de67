//! The country of an address, from a MaxMind DB file that the operator brings.
//!
//! Nothing is downloaded and nothing leaves the process. Must not know: what anybody makes of it.

use maxminddb::{Reader, path};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Largest file, in bytes: it is held in memory, and country files have about ten million.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum CountryError {
    #[error("proxy.country_file {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("proxy.country_file {0}: more than {FILE_BYTES_MAX} bytes")]
    TooLong(PathBuf),
    #[error("proxy.country_file {path}: no MaxMind DB file: {error}")]
    Format { path: PathBuf, error: maxminddb::MaxMindDbError },
}

/// Without a file, every country is unknown.
#[derive(Default)]
pub struct Countries(Option<Reader<Vec<u8>>>);

impl Countries {
    /// Reads the whole file; a changed one is read at the next start.
    pub fn load(file: Option<&Path>) -> Result<Countries, CountryError> {
        let Some(file) = file else { return Ok(Countries(None)) };
        let path = || file.to_owned();
        let unreadable = |error| CountryError::Read { path: path(), error };
        if std::fs::metadata(file).map_err(unreadable)?.len() > FILE_BYTES_MAX {
            return Err(CountryError::TooLong(path()));
        }
        let bytes = std::fs::read(file).map_err(unreadable)?;
        match Reader::from_source(bytes) {
            Ok(reader) => Ok(Countries(Some(reader))),
            Err(error) => Err(CountryError::Format { path: path(), error }),
        }
    }

    /// Two capital letters, or "" if unknown: where the address is in use, else where it is registered.
    pub fn of(&self, address: IpAddr) -> &str {
        let Some(reader) = &self.0 else { return "" };
        let Ok(found) = reader.lookup(address.to_canonical()) else { return "" };
        let named = |part| found.decode_path::<&str>(&path![part, "iso_code"]).ok().flatten();
        let code = named("country").or_else(|| named("registered_country"));
        let is_code = |code: &&str| code.len() == 2 && code.bytes().all(|byte| byte.is_ascii_uppercase());
        code.filter(is_code).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Networks for documentation only, written by mmdb_writer.
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/countries.mmdb");

    #[test]
    fn an_address_has_the_country_of_its_network() {
        let countries = Countries::load(Some(Path::new(FILE))).unwrap();
        for (address, code) in [
            ("192.0.2.1", "NL"),
            ("::ffff:192.0.2.1", "NL"),
            ("198.51.100.7", "JP"),
            ("2001:db8::1", "DE"),
            ("203.0.113.1", ""),
            ("127.0.0.1", ""),
            ("::1", ""),
        ] {
            assert_eq!(countries.of(address.parse().unwrap()), code, "{address}");
        }
        assert_eq!(Countries::load(None).unwrap().of("192.0.2.1".parse().unwrap()), "");
    }

    #[test]
    fn a_file_that_is_none_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |name: &str| {
            let error = Countries::load(Some(&folder.path().join(name))).map(|_| ()).unwrap_err();
            error.to_string().replace(folder.path().to_str().unwrap(), "F")
        };
        std::fs::write(folder.path().join("text"), "no database").unwrap();
        assert!(refused("text").starts_with("proxy.country_file F/text: no MaxMind DB file"));
        assert!(refused("none").starts_with("proxy.country_file F/none: No such file"));
        // A damaged file gives no country and ends nothing.
        let whole = std::fs::read(FILE).unwrap();
        for cut in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[cut] ^= 0xff;
            std::fs::write(folder.path().join("damaged"), &damaged).unwrap();
            if let Ok(countries) = Countries::load(Some(&folder.path().join("damaged"))) {
                for address in ["192.0.2.1", "198.51.100.7", "2001:db8::1", "8.8.8.8"] {
                    assert!(countries.of(address.parse().unwrap()).len() <= 2);
                }
            }
        }
    }
}
