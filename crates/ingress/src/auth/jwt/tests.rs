//! Tokens of real keys, and what an attacker would make of them.

use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use serde_json::json;

use super::*;

// made once with another library (Python's cryptography), so that we do not only agree with ourselves
const RSA_N: &str = "kTb0ugLo8Zhy1oxd5lydnQJ_CSsM-6t0YjUUpoBeKY2clXAxhgSFHMyT1upl7_DOtYIfRlwy6Q9RS4JiEU51L1gvxKVRJ5U5sY3onVhGFuNXaJqQUFb8SGiLPMCyOXCc6kDxQzsHDUQaWoH-QYiqtHp9EasQG4mrjbAMCCG8s2sd42idssHxldiTU3D2e7Yiva_1fYkmRttoF2XHEjcboltLmHlSA8i09ydDFukdFImoRwyPxkfSd4PjgQdhhRiBtt1ZHuQdB8YyfIRG7jqZZnR57xKBlk_uPJ5cspvEjFNaIL4213efEA8QdcHZMsnQgFp9boJB4W2pLZiy32R6qQ";
const RS256: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYSJ9.eyJpc3MiOiJodHRwczovL29wIiwiYXVkIjoibWUiLCJzdWIiOiJhbGljZSIsImV4cCI6MjAwMDAwMDAwMCwibm9uY2UiOiJuIn0.ZP8EwGwMmtnis-wrZaf4oRebBVjmdpzXkgCXMu5GE4XN-MGfw71frx2-VUIvCZdqhdSuJCCn01xi2HgLUmjr9Z6muV0F_uuoS4mcaif02f2w5IxjRyoVQMoaBcjWP4Kkl03AiSMnwDSUwBWJ8nChmjGNBkRyPynjqbSe7FasOBPpN85pveE8j14lk3eFF2NF1dO8sYrd4lhLeny1RD-9YKzjLv_rzyBvoQXA4mKu3Tvgb55YptR37TsSBJ_tguFUkpchIPvoEe85OwQCLXD0wqKZTr5zJxHSvE4dIeuLn9CU-t8WLfJrVF-kU70-ZMqJ3b1K0rmARtSaEBmkGr1UQw";
const PS512: &str = "eyJhbGciOiJQUzUxMiIsImtpZCI6InJzYSJ9.eyJpc3MiOiJodHRwczovL29wIiwiYXVkIjoibWUiLCJzdWIiOiJhbGljZSIsImV4cCI6MjAwMDAwMDAwMCwibm9uY2UiOiJuIn0.Lon-Q-gPFeC9EI8ranCzrIAYSIP6ZZvhaekrCyZ66SNIbin1rvyq3jpUjEPNEIhqbB2wNLaP1nTKnRPnlVxyKg0IlSx3gMMMN0mNus8KtzUHwKFu7BpZ4fkflwZW_PK4pt_zq1Ly7ul82zBHVf3fEgUngk6oZtBrEkpGnGJMAYZeAP9eX_c_Qh1eNx5wTRCpPqN5VGF_5W5rkoN3siNgfoWPLrefOV1s57n3sKACsSN4fme1-2Asg8sWd7jKkpZun-H8ykW-9gKyEq-Wjn4R2nIePk2cbivrQQVufQuv5gjWjSEW4jKy-TRZ8p2KF8YxX91u0p_aNoTs8NVBvWkVmQ";

const NOW: i64 = 1_900_000_000;

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn rsa_keys() -> KeySet {
    KeySet::read(&json!({ "keys": [{ "kty": "RSA", "kid": "rsa", "use": "sig", "n": RSA_N, "e": "AQAB" }] })).unwrap()
}

fn outcome(token: &str, keys: &KeySet) -> Result<(), TokenError> {
    Token::parse(token)?.verify(keys).map(drop)
}

#[test]
fn tokens_of_real_keys_are_read() {
    assert_eq!(outcome(RS256, &rsa_keys()), Ok(()));
    assert_eq!(outcome(PS512, &rsa_keys()), Ok(()));
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let keys = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()) }] });
    let signed = format!("{}.{}", encode(&json!({ "alg": "EdDSA" })), encode(&json!({ "sub": "a" })));
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()).as_ref()));
    assert_eq!(outcome(&token, &KeySet::read(&keys).unwrap()), Ok(()));
}

#[test]
fn an_elliptic_token_is_read_and_every_changed_byte_is_noticed() {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
    let point = pair.public_key().as_ref();
    let (x, y) = point[1..].split_at(32);
    let keys = json!({ "keys": [{ "kty": "EC", "crv": "P-256", "kid": "a", "alg": "ES256",
        "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y) }] });
    let keys = KeySet::read(&keys).unwrap();
    let signed = format!("{}.{}", encode(&json!({ "alg": "ES256", "kid": "a" })), encode(&json!({ "sub": "alice" })));
    let signature = pair.sign(&random, signed.as_bytes()).unwrap();
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()));
    assert_eq!(outcome(&token, &keys), Ok(()));
    for at in 0..token.len() {
        let mut bytes = token.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        // the last character of a part may carry bits that mean nothing: then the token is refused as malformed
        assert!(outcome(&changed, &keys).is_err(), "byte {at} can be changed");
    }
    assert_eq!(outcome(&token, &rsa_keys()), Err(TokenError::UnknownKey));
}

#[test]
fn what_an_attacker_would_send_is_refused() {
    let payload = encode(&json!({ "iss": "https://op", "aud": "me", "sub": "mallory", "exp": 2_000_000_000 }));
    let with = |header: Value, signature: &str| format!("{}.{payload}.{signature}", encode(&header));
    let (_, signature) = RS256.rsplit_once('.').unwrap();
    for (token, expected) in [
        (with(json!({ "alg": "none" }), ""), TokenError::Algorithm),
        (with(json!({ "alg": "None", "kid": "rsa" }), ""), TokenError::Algorithm),
        (with(json!({ "alg": "HS256", "kid": "rsa" }), signature), TokenError::Algorithm),
        (with(json!({ "alg": "ES256", "kid": "rsa" }), signature), TokenError::Algorithm),
        (with(json!({ "alg": "RS256", "kid": "rsa" }), signature), TokenError::Signature),
        (with(json!({ "alg": "RS256", "kid": "rsa" }), ""), TokenError::Signature),
        (with(json!({ "alg": "RS256", "kid": "other" }), signature), TokenError::UnknownKey),
        (with(json!({ "alg": "RS256", "kid": "rsa", "crit": ["b64"] }), signature), TokenError::Algorithm),
        (with(json!({ "kid": "rsa" }), signature), TokenError::Malformed),
        (with(json!(["RS256"]), signature), TokenError::Malformed),
        (format!("{payload}.{payload}"), TokenError::Malformed),
        ("..".to_owned(), TokenError::Malformed),
        (String::new(), TokenError::Malformed),
        (format!("{RS256}="), TokenError::Malformed),
        (format!("{}.{RS256}", encode(&json!({}))), TokenError::Malformed),
        (format!("{RS256}{}", "A".repeat(20_000)), TokenError::Malformed),
    ] {
        assert_eq!(outcome(&token, &rsa_keys()), Err(expected), "{token:.120}");
    }
}

#[test]
fn keys_that_cannot_sign_are_left_out() {
    let read = |key: Value| KeySet::read(&json!({ "keys": [key] })).unwrap().keys.len();
    assert_eq!(read(json!({ "kty": "RSA", "n": RSA_N, "e": "AQAB", "use": "enc" })), 0);
    assert_eq!(read(json!({ "kty": "oct", "k": "c2VjcmV0" })), 0);
    assert_eq!(read(json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" })), 0);
    assert_eq!(read(json!({ "kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA" })), 0);
    assert_eq!(read(json!({ "kty": "RSA", "n": RSA_N, "e": "AQAB" })), 1);
    assert!(KeySet::read(&json!({ "keys": 1 })).is_none());
}

#[test]
fn claims_must_say_what_was_expected() {
    let good = json!({ "iss": "https://op", "aud": "me", "sub": "alice", "exp": NOW + 10, "nonce": "n" });
    let compare = |change: Value| {
        let mut claims = good.as_object().unwrap().clone();
        for (name, value) in change.as_object().unwrap() {
            claims.insert(name.clone(), value.clone());
        }
        let expected = Expected {
            issuer: "https://op",
            audiences: &["me", "api"],
            client_id: "me",
            nonce: Some("n"),
            now_secs: NOW,
        };
        check(&claims, &expected)
    };
    for (change, expected) in [
        (json!({}), Ok(())),
        (json!({ "aud": ["api"] }), Ok(())),
        (json!({ "aud": ["me", "other"], "azp": "me" }), Ok(())),
        (json!({ "exp": 1_900_000_000.5 }), Ok(())),
        (json!({ "exp": NOW - 299 }), Ok(())),
        (json!({ "iss": "https://op/" }), Err(TokenError::Issuer)),
        (json!({ "iss": null }), Err(TokenError::Issuer)),
        (json!({ "aud": "you" }), Err(TokenError::Audience)),
        (json!({ "aud": ["me", "other"] }), Err(TokenError::Audience)),
        (json!({ "aud": ["me", "other"], "azp": "other" }), Err(TokenError::Audience)),
        (json!({ "aud": { "me": 1 } }), Err(TokenError::Audience)),
        (json!({ "exp": NOW - 300 }), Err(TokenError::Expired)),
        (json!({ "exp": null }), Err(TokenError::Expired)),
        (json!({ "exp": "2000000000" }), Err(TokenError::Expired)),
        (json!({ "nbf": NOW + 301 }), Err(TokenError::TooEarly)),
        (json!({ "nonce": "m" }), Err(TokenError::Nonce)),
        (json!({ "nonce": null }), Err(TokenError::Nonce)),
        (json!({ "sub": "" }), Err(TokenError::Subject)),
    ] {
        assert_eq!(compare(change.clone()), expected, "{change}");
    }
}

#[test]
fn a_provider_of_many_tenants_names_the_token_s_own() {
    let pattern = "https://login.example/{tenantid}/v2.0";
    for (issuer, tenant, expected) in [
        ("https://login.example/t1/v2.0", Some("t1"), true),
        ("https://login.example/t1/v2.0", Some("t2"), false),
        ("https://login.example/t1/v2.0", None, false),
        ("https://login.example//v2.0", Some(""), false),
        ("https://evil.example/t1/v2.0", Some("t1"), false),
    ] {
        assert_eq!(is_tenant_of(issuer, pattern, tenant), expected, "{issuer}");
    }
}
