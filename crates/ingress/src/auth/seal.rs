//! Values that a client keeps for us: sealed with AES-256-GCM, so that nobody else can read, make or change one.
//!
//! Each app has keys of its own, derived from the server's key and the user's sealing secrets, and each purpose has its own
//! among them: a login's state is no session, and a session of one app is nothing to another.
//!
//! **Invariant:** no key appears in a `Debug` text.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use cove_model::{ResourceId, SecretText};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use serde::{Serialize, de::DeserializeOwned};

/// Bytes of a key.
pub(crate) const KEY_LEN: usize = 32;

/// The key that all others of a server are derived from.
#[derive(Clone)]
pub struct AuthKey(pub(crate) [u8; KEY_LEN]);

impl AuthKey {
    /// A key of 32 random bytes, which the caller keeps so that logins outlive a restart.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A key that is forgotten with the process.
    #[must_use]
    pub fn random() -> Self {
        Self(random())
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(***)")
    }
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).expect("Linux gives random bytes to every process");
    bytes
}

/// Random text of `N` bytes, safe in URLs and cookies.
pub(crate) fn random_text<const N: usize>() -> String {
    URL_SAFE_NO_PAD.encode(random::<N>())
}

/// Seals values of one purpose of one app.
pub(crate) struct Sealer(LessSafeKey);

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(***)")
    }
}

impl Sealer {
    /// The sealer of an app for a purpose.
    pub(crate) fn new(key: &AuthKey, purpose: &str, app: &ResourceId, secrets: &[SecretText]) -> Self {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &key.0));
        let parts = [purpose, app.key()].into_iter().chain(secrets.iter().map(SecretText::reveal));
        for part in parts {
            // each with its length, so that no two lists read the same
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        Self::with(context.sign().as_ref())
    }

    /// The sealer of files that the server keeps.
    pub(crate) fn of_files(key: &AuthKey) -> Self {
        Self::with(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key.0), b"files").as_ref())
    }

    fn with(bytes: &[u8]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, bytes).expect("HMAC-SHA256 gives the 32 bytes that AES-256 needs");
        Self(LessSafeKey::new(key))
    }

    /// Sealed bytes: nonce, ciphertext, tag.
    pub(crate) fn seal_bytes(&self, value: &impl Serialize) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(value).expect("structs of texts and numbers are JSON");
        let nonce: [u8; NONCE_LEN] = random();
        let sealed = self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut bytes);
        sealed.expect("what is kept in a cookie is far below the limit of AES-GCM");
        let mut all = nonce.to_vec();
        all.append(&mut bytes);
        all
    }

    /// What [`Self::seal_bytes`] was given; `None` for anything else.
    pub(crate) fn open_bytes<T: DeserializeOwned>(&self, sealed: &[u8]) -> Option<T> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = sealed.to_vec();
        let opened = self.0.open_in_place(nonce, Aad::empty(), &mut bytes).ok()?;
        serde_json::from_slice(opened).ok()
    }

    /// Sealed text, safe in URLs and cookies.
    pub(crate) fn seal(&self, value: &impl Serialize) -> String {
        URL_SAFE_NO_PAD.encode(self.seal_bytes(value))
    }

    /// What [`Self::seal`] was given; `None` for anything else.
    pub(crate) fn open<T: DeserializeOwned>(&self, text: &str) -> Option<T> {
        self.open_bytes(&URL_SAFE_NO_PAD.decode(text).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(name: &str) -> ResourceId {
        ResourceId::resource("s", "g", "Microsoft.App/containerApps", name).unwrap()
    }

    #[test]
    fn only_the_same_app_purpose_and_secrets_open_it() {
        let key = AuthKey::random();
        let secret = |text: &str| vec![SecretText::new(text.to_owned())];
        let sealed = Sealer::new(&key, "session", &app("web"), &secret("x")).seal(&("alice", 7));
        let opens = |sealer: &Sealer| sealer.open::<(String, u32)>(&sealed).is_some();
        assert!(opens(&Sealer::new(&key, "session", &app("web"), &secret("x"))));
        assert!(!opens(&Sealer::new(&key, "state", &app("web"), &secret("x"))));
        assert!(!opens(&Sealer::new(&key, "session", &app("api"), &secret("x"))));
        assert!(!opens(&Sealer::new(&key, "session", &app("web"), &secret("y"))));
        assert!(!opens(&Sealer::new(&AuthKey::random(), "session", &app("web"), &secret("x"))));
        assert!(!opens(&Sealer::of_files(&key)));
    }

    #[test]
    fn a_changed_or_foreign_text_does_not_open() {
        let sealer = Sealer::of_files(&AuthKey::random());
        let sealed = sealer.seal(&"alice");
        assert_eq!(sealer.open::<String>(&sealed).as_deref(), Some("alice"));
        for at in 0..sealed.len() {
            let mut bytes = sealed.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(sealer.open::<String>(std::str::from_utf8(&bytes).unwrap()).is_none(), "byte {at} can be changed");
        }
        for text in ["", "AAAA", "!", &"A".repeat(5000)] {
            assert!(sealer.open::<String>(text).is_none(), "{text:.20}");
        }
        assert_ne!(sealer.seal(&"alice"), sealed, "a nonce is used once");
    }
}
