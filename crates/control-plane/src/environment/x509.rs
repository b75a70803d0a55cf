//! Reads certificate files: PFX (PKCS #12) or PEM with a chain and its private key.
//!
//! **Invariant:** what is given back is usable: the key is the leaf's, the chain begins with the leaf.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use cove_arm::ArmError;
use jiff::Timestamp;
use p12_keystore::Pkcs12Archive;
use ring::digest;
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Certificates looked at in one file.
const CHAIN_MAX: usize = 20;
/// Longest that opening a PFX file may take.
const OPEN_MAX: Duration = Duration::from_secs(5);
/// PFX files that are opened at once.
const OPENING_MAX: usize = 4;
/// Where a problem with a file is told.
const TARGET: &str = "properties.value";

/// What a file held; its `Debug` text has no key.
pub(crate) struct CertificateFile {
    /// Chain in PEM, leaf first.
    pub(crate) chain_pem: String,
    /// The leaf's key in PEM.
    pub(crate) key_pem: String,
    /// Names it is valid for, lower case.
    pub(crate) names: Vec<String>,
    /// What Azure tells of it: read-only properties.
    pub(crate) facts: Value,
}

impl fmt::Debug for CertificateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateFile").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Reads a file; `value` is base64.
///
/// # Errors
/// 400 `CertificateInvalid`: not base64, not a PFX or PEM file, wrong password, no key, the key of another certificate.
pub(crate) fn read(value: &str, password: &str) -> Result<CertificateFile, ArmError> {
    let compact: String = value.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let bytes = BASE64.decode(compact).map_err(|error| invalid(format!("The value is not base64: {error}.")))?;
    let is_pem = bytes.windows(10).any(|window| window == b"-----BEGIN");
    let (certificates, key) = if is_pem { from_pem(&bytes)? } else { from_pfx(&bytes, password)? };
    from_parts(certificates, &key)
}

/// What a chain in PEM with its key says of itself.
///
/// # Errors
/// As [`read`].
pub(crate) fn from_pem_texts(chain_pem: &str, key_pem: &str) -> Result<CertificateFile, ArmError> {
    let (certificates, key) = from_pem(format!("{chain_pem}\n{key_pem}").as_bytes())?;
    from_parts(certificates, &key)
}

/// Names of the first certificate of a chain in PEM; none when it cannot be read.
pub(crate) fn names_in(chain_pem: &str) -> Vec<String> {
    let Ok(leaf) = CertificateDer::from_pem_slice(chain_pem.as_bytes()) else { return Vec::new() };
    X509Certificate::from_der(&leaf).map_or_else(|_| Vec::new(), |(_, parsed)| names_of(&parsed))
}

fn invalid(message: impl Into<String>) -> ArmError {
    ArmError::new(400, "CertificateInvalid", message).at(TARGET)
}

type Parts = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn from_pem(bytes: &[u8]) -> Result<Parts, ArmError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).take(CHAIN_MAX).collect();
    let certificates = certificates.map_err(|error| invalid(format!("The PEM file cannot be read: {error}.")))?;
    let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|_| {
        invalid("The PEM file has no private key that can be read; add it, unencrypted (PKCS #8, PKCS #1 or SEC1).")
    })?;
    Ok((certificates, key))
}

fn from_pfx(bytes: &[u8], password: &str) -> Result<Parts, ArmError> {
    let archive = open_in_time(bytes, password)?;
    let key = archive.keys.first().ok_or_else(|| invalid("The PFX file has no private key."))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.key.as_der().to_vec()));
    let certificates = archive.certs.iter().take(CHAIN_MAX);
    let certificates = certificates.map(|bag| CertificateDer::from(bag.cert.as_der().to_vec())).collect();
    Ok((certificates, key))
}

/// PFX files that are being opened.
static OPENING: AtomicUsize = AtomicUsize::new(0);

/// A place among those that are opened at once; free again when the thread ends, be it by a panic.
struct Opening;

impl Drop for Opening {
    fn drop(&mut self) {
        OPENING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits in this thread; requests of others go on in another one where there is one.
fn waiting_aside<T>(wait: impl FnOnce() -> T) -> T {
    let flavor = tokio::runtime::Handle::try_current().map(|handle| handle.runtime_flavor());
    if matches!(flavor, Ok(tokio::runtime::RuntimeFlavor::MultiThread)) {
        tokio::task::block_in_place(wait)
    } else {
        wait()
    }
}

/// The file says itself how often its password is hashed, perhaps for hours: it is opened in a thread of its own, for which
/// nobody waits longer than [`OPEN_MAX`], and of which there are at most [`OPENING_MAX`].
fn open_in_time(bytes: &[u8], password: &str) -> Result<Pkcs12Archive, ArmError> {
    let too_slow = || invalid("The PFX file takes too long to open; export it with fewer iterations.");
    if OPENING.fetch_add(1, Ordering::AcqRel) >= OPENING_MAX {
        OPENING.fetch_sub(1, Ordering::AcqRel);
        return Err(ArmError::too_many_requests("Other PFX files are being opened; try again soon."));
    }
    let place = Opening;
    let (bytes, password) = (bytes.to_vec(), password.to_owned());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let _place = place;
        let _nobody_waits = sender.send(Pkcs12Archive::from_pkcs12(&bytes, &password));
    });
    let opened = match waiting_aside(|| receiver.recv_timeout(OPEN_MAX)) {
        Ok(opened) => opened,
        Err(mpsc::RecvTimeoutError::Timeout) => return Err(too_slow()),
        Err(mpsc::RecvTimeoutError::Disconnected) => return Err(invalid("The file is damaged.")),
    };
    opened
        .map_err(|error| invalid(format!("The file is neither PEM nor a PFX file that this password opens: {error}.")))
}

fn from_parts(
    certificates: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<CertificateFile, ArmError> {
    if certificates.is_empty() {
        return Err(invalid("The file has no certificate."));
    }
    let signer = rustls::crypto::ring::sign::any_supported_type(key).map_err(|_| {
        invalid("The private key is of a kind that cannot be served; use RSA of 2048 bits or more, ECDSA or Ed25519.")
    })?;
    let is_its_key = |certificate: &CertificateDer<'static>| {
        CertifiedKey::new(vec![certificate.clone()], Arc::clone(&signer)).keys_match().is_ok()
    };
    let leaf = certificates.iter().position(is_its_key);
    let leaf = leaf.ok_or_else(|| invalid("The private key belongs to none of the file's certificates."))?;
    let chain = chain_from(certificates, leaf);
    let (_, parsed) = X509Certificate::from_der(&chain[0]).map_err(|_| invalid("The certificate is damaged."))?;
    let names = names_of(&parsed);
    let facts = facts_of(&parsed, &chain[0], &names)?;
    let mut chain_pem = String::new();
    for certificate in &chain {
        chain_pem.push_str(&pem("CERTIFICATE", certificate));
    }
    let kind = match key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    Ok(CertificateFile { chain_pem, key_pem: pem(kind, key.secret_der()), names, facts })
}

/// The leaf and its issuers in order; certificates that lead nowhere are left out.
fn chain_from(mut certificates: Vec<CertificateDer<'static>>, leaf: usize) -> Vec<CertificateDer<'static>> {
    let mut chain = vec![certificates.swap_remove(leaf)];
    loop {
        let next = {
            let last = chain.last().map(|last| X509Certificate::from_der(last));
            let Some(Ok((_, last))) = last else { return chain };
            certificates.iter().position(|candidate| {
                X509Certificate::from_der(candidate).is_ok_and(|(_, candidate)| {
                    candidate.subject() == last.issuer() && candidate.subject() != last.subject()
                })
            })
        };
        match next {
            Some(next) => chain.push(certificates.swap_remove(next)),
            None => return chain,
        }
    }
}

/// DNS names and addresses of the alternative names; the common name when there are none.
fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let mut names = Vec::new();
    if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
        for name in &alternative.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => names.extend(address(bytes)),
                _ => {}
            }
        }
    }
    if names.is_empty() {
        let common = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        names.extend(common.map(str::to_ascii_lowercase));
    }
    names
}

fn address(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        _ => None,
    }
}

fn facts_of(certificate: &X509Certificate<'_>, der: &[u8], names: &[String]) -> Result<Value, ArmError> {
    let time = |seconds: i64| {
        let time = Timestamp::from_second(seconds).map_err(|_| invalid("The certificate's dates are out of range."));
        time.map(|time| time.to_string())
    };
    let hex = |digest: digest::Digest| digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<String>();
    Ok(json!({
        "subjectName": certificate.subject().to_string(),
        "subjectAlternativeNames": names,
        "issuer": certificate.issuer().to_string(),
        "issueDate": time(certificate.validity().not_before.timestamp())?,
        "expirationDate": time(certificate.validity().not_after.timestamp())?,
        "thumbprint": hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der)),
        "publicKeyHash": BASE64.encode(digest::digest(&digest::SHA256, certificate.public_key().raw)),
    }))
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = format!("-----BEGIN {kind}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, later) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = later;
    }
    pem.push_str(&format!("-----END {kind}-----\n"));
    pem
}
