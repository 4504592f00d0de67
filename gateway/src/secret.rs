//! The installation's one secret, and everything derived from it: pseudonyms and own signatures.
//!
//! Each use has its own key, so a value made for one can never be passed off as another. Must not
//! know: requests, sessions' meaning, how long anything is valid.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use gaitway_policies::{SessionId, SubjectId, TokenId};
use hmac::{Hmac, Mac};
use rand::TryRngCore;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Environment variable with the secret itself: at least 32 bytes of text. For replicas, which must share it.
pub const SECRET_VARIABLE: &str = "GAITWAY_SECRET";
/// Environment variable with the path of a file holding the same, such as a mounted container secret.
pub const SECRET_FILE_VARIABLE: &str = "GAITWAY_SECRET_FILE";
/// Name of the generated file in the data directory.
pub const SECRET_FILE: &str = "secret";

/// The installation's secret with one derived key per use. Losing it ends every session of Gaitway's
/// own cookie and renames every pseudonym; leaking it lets others forge own cookies and page tokens.
pub struct InstallSecret {
    session: Keyed,
    subject: Keyed,
    token: Keyed,
    path: Keyed,
    own_cookie: Keyed,
    page_token: Keyed,
    challenge: Keyed,
    operator: Keyed,
    login: Keyed,
    sealing: RandomizedNonceKey,
}

/// What a signature is for. A signature made for one purpose never verifies for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Gaitway's own session cookie.
    OwnCookie,
    /// The short-lived token that binds a telemetry socket to a page.
    PageToken,
    /// A passed challenge.
    Challenge,
    /// An operator's login to the ops page.
    Operator,
    /// A person's login at the OpenID provider.
    Login,
}

/// HMAC-SHA-256 cut to its first 128 bits: nobody can guess it, and it is as long as a pseudonym.
pub type Signature = [u8; 16];

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read the secret file {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write the secret file {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("the secret from {origin} has {bytes} bytes; at least {SECRET_BYTES_MIN} are needed")]
    Short { origin: String, bytes: usize },
    #[error("the secret from {origin} has more than {SECRET_BYTES_MAX} bytes")]
    Long { origin: String },
    #[error("the operating system gives no randomness: {0}")]
    Randomness(String),
}

impl InstallSecret {
    /// Takes the secret from `GAITWAY_SECRET`, else from the file named by `GAITWAY_SECRET_FILE`, else
    /// from `secret` in `directory`, which is created with 32 random bytes (mode 0600, directory 0700).
    /// Blocking; called once at start.
    pub fn load_or_create(directory: &Path) -> Result<InstallSecret, SecretError> {
        if let Some(text) = std::env::var_os(SECRET_VARIABLE) {
            return InstallSecret::from_text(text.as_encoded_bytes(), SECRET_VARIABLE);
        }
        if let Some(path) = std::env::var_os(SECRET_FILE_VARIABLE) {
            let path = PathBuf::from(path);
            let text =
                read_limited(&path).map_err(|source| SecretError::Read { path: path.clone(), source })?;
            return InstallSecret::from_text(&text, &path.display().to_string());
        }
        InstallSecret::from_directory(directory)
    }

    /// The part of [`load_or_create`](InstallSecret::load_or_create) that looks at no environment.
    pub fn from_directory(directory: &Path) -> Result<InstallSecret, SecretError> {
        let path = directory.join(SECRET_FILE);
        match read_limited(&path) {
            Ok(text) => {
                tighten(&path);
                InstallSecret::from_text(&text, &path.display().to_string())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(directory, &path)?;
                // Read back what is there now: another process may have been first.
                let text =
                    read_limited(&path).map_err(|source| SecretError::Read { path: path.clone(), source })?;
                InstallSecret::from_text(&text, &path.display().to_string())
            }
            Err(source) => Err(SecretError::Read { path, source }),
        }
    }

    /// Takes a secret as given. One line break at the end does not count, as editors and `echo` add it.
    pub fn from_text(text: &[u8], origin: &str) -> Result<InstallSecret, SecretError> {
        let secret = without_line_break(text);
        if secret.len() < SECRET_BYTES_MIN {
            return Err(SecretError::Short { origin: origin.to_owned(), bytes: secret.len() });
        }
        if secret.len() > SECRET_BYTES_MAX {
            return Err(SecretError::Long { origin: origin.to_owned() });
        }
        // Hashed first, so that a passphrase and a generated key serve alike as an HMAC key.
        Ok(InstallSecret::from_key(&Sha256::digest(secret).into()))
    }

    fn from_key(root: &[u8; 32]) -> InstallSecret {
        let derive =
            |use_name: &str| Keyed::new(&Keyed::new(root).full(&[b"gaitway/v1/", use_name.as_bytes()]));
        InstallSecret {
            session: derive("session"),
            subject: derive("subject"),
            token: derive("token"),
            path: derive("path"),
            own_cookie: derive("own-cookie"),
            page_token: derive("page-token"),
            challenge: derive("challenge"),
            operator: derive("operator"),
            login: derive("login"),
            #[expect(clippy::expect_used, reason = "the key has the length of the algorithm")]
            sealing: RandomizedNonceKey::new(
                &AES_256_GCM,
                &Keyed::new(root).full(&[b"gaitway/v1/", b"sealing"]),
            )
            .expect("a key of 32 bytes"),
        }
    }

    /// Pseudonym of a session. `parts` are hashed with their lengths, so `["ab", "c"]` differs from `["a", "bc"]`.
    pub fn session(&self, parts: &[&[u8]]) -> SessionId {
        SessionId(self.session.short(parts))
    }

    pub fn subject(&self, parts: &[&[u8]]) -> SubjectId {
        SubjectId(self.subject.short(parts))
    }

    pub fn token(&self, parts: &[&[u8]]) -> TokenId {
        TokenId(self.token.short(parts))
    }

    /// Keyed hash of a path, to count variety without keeping paths.
    pub fn path(&self, path: &[u8]) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.path.short(&[path]);
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }

    pub fn sign(&self, purpose: Purpose, message: &[u8]) -> Signature {
        self.key(purpose).short(&[message])
    }

    /// Compares in constant time.
    pub fn is_signed(&self, purpose: Purpose, message: &[u8], signature: &[u8]) -> bool {
        use subtle::ConstantTimeEq;
        self.sign(purpose, message).ct_eq(signature).into()
    }

    /// Encrypts what leaves this process but is for none but us: AES-256-GCM under a random nonce. What is
    /// sealed for one `place` opens in no other. `None` if the system gives no randomness.
    pub fn seal(&self, place: &[&[u8]], value: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = value.to_vec();
        let nonce = self.sealing.seal_in_place_append_tag(Aad::from(as_one(place)), &mut sealed).ok()?;
        sealed.extend_from_slice(nonce.as_ref());
        Some(sealed)
    }

    /// What was sealed for this place by an installation with this secret; `None` for anything else.
    pub fn unseal(&self, place: &[&[u8]], sealed: &[u8]) -> Option<Vec<u8>> {
        let (value, nonce) = sealed.split_at_checked(sealed.len().checked_sub(NONCE_LEN)?)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut value = value.to_vec();
        let length = self.sealing.open_in_place(nonce, Aad::from(as_one(place)), &mut value).ok()?.len();
        value.truncate(length);
        Some(value)
    }

    fn key(&self, purpose: Purpose) -> &Keyed {
        match purpose {
            Purpose::OwnCookie => &self.own_cookie,
            Purpose::PageToken => &self.page_token,
            Purpose::Challenge => &self.challenge,
            Purpose::Operator => &self.operator,
            Purpose::Login => &self.login,
        }
    }
}

impl std::fmt::Debug for InstallSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InstallSecret(..)")
    }
}

/// `N` bytes from the operating system's generator.
pub fn random<const N: usize>() -> Result<[u8; N], SecretError> {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).map_err(|error| SecretError::Randomness(error.to_string()))?;
    Ok(bytes)
}

/// An HMAC-SHA-256 whose key is already absorbed: a hash costs two compressions less.
struct Keyed(Hmac<Sha256>);

impl Keyed {
    fn new(key: &[u8; 32]) -> Keyed {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
        Keyed(Hmac::new_from_slice(key).expect("a key of any length"))
    }

    fn full(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = self.0.clone();
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    fn short(&self, parts: &[&[u8]]) -> [u8; 16] {
        let mut cut = [0; 16];
        cut.copy_from_slice(&self.full(parts)[..16]);
        cut
    }
}

/// Parts with their lengths, so that no two lists of parts become one text.
fn as_one(parts: &[&[u8]]) -> Vec<u8> {
    let with_length = |part: &&[u8]| [&(part.len() as u64).to_be_bytes()[..], part].concat();
    parts.iter().flat_map(with_length).collect()
}

/// Writes beside the final name and links, so that no process ever reads half a secret and the first
/// of several starting together wins.
fn create(directory: &Path, path: &Path) -> Result<(), SecretError> {
    let failed = |source| SecretError::Write { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let bytes: [u8; 32] = random()?;
    let own_name: [u8; 8] = random()?;
    let unfinished = directory.join(format!("{SECRET_FILE}.{:016x}", u64::from_le_bytes(own_name)));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        file.write_all(hex(&bytes).as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        match fs::hard_link(&unfinished, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    })();
    let _ = fs::remove_file(&unfinished);
    written.map_err(failed)?;
    // Without this, a power cut could leave the sessions signed by a secret that no longer exists.
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

fn tighten(path: &Path) {
    let Ok(metadata) = fs::metadata(path) else { return };
    if metadata.permissions().mode() & 0o077 == 0 {
        return;
    }
    tracing::warn!(path = %path.display(), "the secret file was readable by others; its mode is set to 0600");
    if let Err(error) = fs::set_permissions(path, fs::Permissions::from_mode(0o600)) {
        tracing::error!(path = %path.display(), %error, "cannot set the secret file's mode");
    }
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(SECRET_BYTES_MAX as u64 + 3).read_to_end(&mut text)?;
    Ok(text)
}

pub(crate) fn without_line_break(text: &[u8]) -> &[u8] {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.strip_suffix(b"\r").unwrap_or(text)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// As many bytes as SHA-256 gives: a shorter secret would be the weakest link.
const SECRET_BYTES_MIN: usize = 32;
/// Far beyond any sensible secret; stops a wrong path from being read whole.
const SECRET_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> InstallSecret {
        InstallSecret::from_text(&[7; 32], "test").unwrap()
    }

    #[test]
    fn the_file_is_made_once_private_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("deep/data");
        let first = InstallSecret::from_directory(&data).unwrap();
        let second = InstallSecret::from_directory(&data).unwrap();
        assert_eq!(first.session(&[b"x"]), second.session(&[b"x"]));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&data.join(SECRET_FILE)), 0o600);
        assert_eq!(mode(&data), 0o700);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "no unfinished file stays");
    }

    #[test]
    fn a_readable_file_is_made_private() {
        let directory = tempfile::tempdir().unwrap();
        InstallSecret::from_directory(directory.path()).unwrap();
        let path = directory.path().join(SECRET_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        InstallSecret::from_directory(directory.path()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn processes_starting_together_agree() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let starts: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || InstallSecret::from_directory(&path).unwrap().session(&[b"x"]))
            })
            .collect();
        let ids: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
        assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    }

    #[test]
    fn a_short_empty_or_endless_secret_is_refused() {
        for bytes in [0, 1, 31, SECRET_BYTES_MAX + 1] {
            assert!(InstallSecret::from_text(&vec![b'a'; bytes], "test").is_err(), "{bytes}");
        }
        assert!(InstallSecret::from_text(&[b"\n".as_slice(), &[b'a'; 31]].concat(), "test").is_ok());
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(SECRET_FILE), "").unwrap();
        assert!(
            InstallSecret::from_directory(directory.path()).is_err(),
            "an empty file is damage, not a start"
        );
    }

    #[test]
    fn the_final_line_break_does_not_count() {
        let text = [b'a'; 40];
        let plain = InstallSecret::from_text(&text, "test").unwrap();
        for ending in ["\n", "\r\n"] {
            let ended = InstallSecret::from_text(&[&text[..], ending.as_bytes()].concat(), "test").unwrap();
            assert_eq!(plain.token(&[b"x"]), ended.token(&[b"x"]));
        }
    }

    #[test]
    fn uses_are_kept_apart() {
        let secret = secret();
        let (session, subject, token) =
            (secret.session(&[b"x"]), secret.subject(&[b"x"]), secret.token(&[b"x"]));
        assert_ne!(session.0, subject.0);
        assert_ne!(session.0, token.0);
        let purposes =
            [Purpose::OwnCookie, Purpose::PageToken, Purpose::Challenge, Purpose::Operator, Purpose::Login];
        for made in purposes {
            let signature = secret.sign(made, b"message");
            for used in purposes {
                assert_eq!(secret.is_signed(used, b"message", &signature), made == used, "{made:?} {used:?}");
            }
        }
    }

    #[test]
    fn the_border_between_parts_counts() {
        let secret = secret();
        assert_ne!(secret.session(&[b"ab", b"c"]), secret.session(&[b"a", b"bc"]));
        assert_ne!(secret.session(&[b"ab"]), secret.session(&[b"ab", b""]));
    }

    #[test]
    fn a_changed_signature_or_message_is_refused() {
        let secret = secret();
        let signature = secret.sign(Purpose::PageToken, b"message");
        for bit in 0..128 {
            let mut changed = signature;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(!secret.is_signed(Purpose::PageToken, b"message", &changed));
        }
        assert!(!secret.is_signed(Purpose::PageToken, b"massage", &signature));
        assert!(!secret.is_signed(Purpose::PageToken, b"message", &signature[..15]));
        assert!(!secret.is_signed(Purpose::PageToken, b"message", b""));
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_only_and_unchanged() {
        let secret = secret();
        let sealed = secret.seal(&[b"login", b"1"], b"a token").unwrap();
        assert_eq!(secret.unseal(&[b"login", b"1"], &sealed).as_deref(), Some(&b"a token"[..]));
        assert_eq!(secret.unseal(&[b"login1", b""], &sealed), None);
        assert_eq!(secret.unseal(&[b"login"], &sealed), None);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(secret.unseal(&[b"login", b"1"], &changed), None, "byte {at}");
            assert_eq!(secret.unseal(&[b"login", b"1"], &sealed[..at]), None, "cut at {at}");
        }
        let other = InstallSecret::from_text(&[8; 32], "test").unwrap();
        assert_eq!(other.unseal(&[b"login", b"1"], &sealed), None);
        assert_ne!(sealed, secret.seal(&[b"login", b"1"], b"a token").unwrap(), "each has its own nonce");
    }

    #[test]
    fn nothing_of_it_is_printed() {
        assert_eq!(format!("{:?}", secret()), "InstallSecret(..)");
    }
}
