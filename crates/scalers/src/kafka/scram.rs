//! SCRAM (RFC 5802, RFC 7677) as a client: proves that it knows the password, and that the server does.
//!
//! **Invariant:** the password is in no message and in no error.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{digest, hmac, pbkdf2};

use crate::source::ReadError;

/// Rounds of hashing that a server may ask for; Kafka's default is 4096.
const ROUNDS_MAX: u32 = 100_000;
/// Bytes of chance in the client's half of the nonce.
const NONCE_BYTES: usize = 18;

/// Which hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Hash {
    Sha256,
    Sha512,
}

impl Hash {
    fn hmac(self) -> hmac::Algorithm {
        match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha512 => hmac::HMAC_SHA512,
        }
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Self::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Self::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }
}

/// A client that has said who it is.
pub(super) struct Hello {
    hash: Hash,
    nonce: String,
    bare: String,
}

impl Hello {
    /// With a fresh nonce.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub(super) fn new(hash: Hash, username: &str) -> Result<Self, ReadError> {
        let mut nonce = [0; NONCE_BYTES];
        SystemRandom::new().fill(&mut nonce).map_err(|_| ReadError::new("the system gives no random bytes"))?;
        Ok(Self::with_nonce(hash, username, &BASE64.encode(nonce)))
    }

    fn with_nonce(hash: Hash, username: &str, nonce: &str) -> Self {
        let name = username.replace('=', "=3D").replace(',', "=2C");
        Self { hash, nonce: nonce.to_owned(), bare: format!("n={name},r={nonce}") }
    }

    /// The first message.
    pub(super) fn message(&self) -> String {
        format!("n,,{}", self.bare)
    }

    /// The second message, from the server's first.
    ///
    /// # Errors
    /// The server's message makes no sense.
    pub(super) fn prove(self, password: &str, server_first: &str) -> Result<Proof, ReadError> {
        let nonce = field(server_first, 'r').filter(|nonce| nonce.starts_with(&self.nonce));
        let salt = field(server_first, 's').and_then(|salt| BASE64.decode(salt).ok());
        let rounds = field(server_first, 'i').and_then(|rounds| rounds.parse::<NonZeroU32>().ok());
        let (Some(nonce), Some(salt), Some(rounds)) = (nonce, salt, rounds) else {
            return Err(ReadError::new("the broker's SCRAM challenge makes no sense"));
        };
        if rounds.get() > ROUNDS_MAX {
            return Err(ReadError::new(format!("the broker asks for {rounds} rounds of SCRAM; at most {ROUNDS_MAX}")));
        }
        let mut salted = vec![0; self.hash.hmac().digest_algorithm().output_len()];
        pbkdf2::derive(self.hash.pbkdf2(), rounds, &salt, password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(self.hash.hmac(), &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let stored_key = digest::digest(self.hash.hmac().digest_algorithm(), client_key.as_ref());
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.bare);
        let signature = hmac::sign(&hmac::Key::new(self.hash.hmac(), stored_key.as_ref()), signed.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(a, b)| a ^ b).collect();
        let server_key = hmac::sign(&salted, b"Server Key");
        let server_key = hmac::Key::new(self.hash.hmac(), server_key.as_ref());
        Ok(Proof { message: format!("{without_proof},p={}", BASE64.encode(proof)), server_key, signed })
    }
}

/// The client's proof, and what the server must answer.
pub(super) struct Proof {
    /// The second message.
    pub(super) message: String,
    server_key: hmac::Key,
    signed: String,
}

impl Proof {
    /// Whether the server knows the password too.
    ///
    /// # Errors
    /// It does not, or it refuses the client.
    pub(super) fn check(&self, server_final: &str) -> Result<(), ReadError> {
        if let Some(error) = field(server_final, 'e') {
            return Err(ReadError::new(format!("the broker refuses the login: {}", crate::keys::short(error))));
        }
        let signature = field(server_final, 'v').and_then(|text| BASE64.decode(text).ok()).unwrap_or_default();
        hmac::verify(&self.server_key, self.signed.as_bytes(), &signature)
            .map_err(|_| ReadError::new("the broker does not know the password: it may be an impostor"))
    }
}

/// The value of `name=` in a message.
fn field(message: &str, name: char) -> Option<&str> {
    message.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677.
    #[test]
    fn the_example_of_the_standard() {
        let hello = Hello::with_nonce(Hash::Sha256, "user", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(hello.message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let proof = hello.prove("pencil", first).unwrap();
        assert_eq!(
            proof.message,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(proof.check("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
        assert!(proof.check("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=").is_err());
        assert!(proof.check("e=other-error").unwrap_err().to_string().ends_with("refuses the login: other-error"));
    }

    #[test]
    fn a_server_that_makes_no_sense() {
        let prove = |first: &str| {
            Hello::with_nonce(Hash::Sha512, "u=,", "abc").prove("p", first).map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(Hello::with_nonce(Hash::Sha512, "u=,", "abc").message(), "n,,n=u=3D=2C,r=abc");
        assert_eq!(prove("r=abcd,s=YQ==,i=1"), Ok(()));
        for wrong in ["", "r=xyz,s=YQ==,i=1", "r=abcd,s=*,i=1", "r=abcd,s=YQ==,i=0", "r=abcd,s=YQ=="] {
            assert_eq!(prove(wrong), Err("the broker's SCRAM challenge makes no sense".to_owned()), "{wrong}");
        }
        assert!(prove("r=abcd,s=YQ==,i=2000000000").is_err());
    }
}
