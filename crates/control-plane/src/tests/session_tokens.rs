//! Tokens for sessions: which one opens them, and what every other one is told.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use http::{HeaderMap, HeaderValue, header};
use jiff::Timestamp;

use super::harness::World;
use crate::{
    SESSIONS_AUDIENCE, SessionTokenError,
    token::{Claims, TokenKey, Use, Who},
};

/// Claims of a good token, by the machine's clock: the platform's is virtual here.
fn claims(world: &World) -> Claims {
    let tenant = &world.plane.config().tenant;
    let now: Timestamp = std::time::SystemTime::now().try_into().unwrap();
    Claims::new(tenant, &Who::client("agent"), Use::Access, SESSIONS_AUDIENCE, now, Duration::from_secs(3600))
}

fn fields(values: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// A token's parts put together anew: a head of one's own, claims that were changed, the old signature.
fn altered(token: &str, head: &str, from: &str, to: &str) -> String {
    let parts: Vec<_> = token.split('.').collect();
    let claims = String::from_utf8(BASE64.decode(parts[1]).unwrap()).unwrap();
    assert!(claims.contains(from));
    format!("{}.{}.{}", BASE64.encode(head), BASE64.encode(claims.replace(from, to)), parts[2])
}

#[tokio::test]
async fn one_kind_of_token_opens_sessions() {
    let world = World::new().await;
    let key = world.plane.token_key();
    let good = claims(&world);
    let sign = |claims: &Claims| format!("Bearer {}", key.sign(claims));
    let opens = |values: &[&str]| world.plane.check_session_token(&fields(values));
    assert_eq!(opens(&[&sign(&good)]), Ok(()));
    let slash = Claims { aud: format!("{SESSIONS_AUDIENCE}/"), ..good.clone() };
    assert_eq!(opens(&[&sign(&slash)]), Ok(()), "`az` asks for it so");

    assert_eq!(opens(&[]), Err(SessionTokenError::Missing));
    let is_invalid = |values: &[&str]| matches!(opens(values), Err(SessionTokenError::Invalid(_)));
    let token = key.sign(&good);
    let long = format!("Bearer {}", "a".repeat(1 << 20));
    for (what, value) in [
        ("no token", "Bearer "),
        ("another scheme", &format!("Basic {token}")),
        ("no scheme", &token),
        ("no web token", "Bearer nonsense"),
        ("three parts of nothing", "Bearer a.b.c"),
        ("letters beyond ASCII", "Bearer gr\u{f6}\u{df}e"),
        ("a megabyte", &long),
        ("cut off", &format!("Bearer {}", &token[..token.len() - 4])),
        ("another server's key", &format!("Bearer {}", TokenKey::new(b"another").sign(&good))),
        ("an empty key", &format!("Bearer {}", TokenKey::new(b"").sign(&good))),
    ] {
        assert!(is_invalid(&[value]), "{what}: {:?}", opens(&[value]));
    }
    // a head is never believed, and claims are not without their signature
    for head in
        [r#"{"alg":"none"}"#, r#"{"alg":"RS256","typ":"JWT"}"#, r#"{"alg":"HS256","jku":"https://evil.example"}"#]
    {
        let forged = altered(&token, head, "agent", "admin");
        assert!(is_invalid(&[&format!("Bearer {forged}")]), "{head}");
        let unsigned = forged.rsplit_once('.').unwrap().0;
        assert!(is_invalid(&[&format!("Bearer {unsigned}.")]), "{head}, unsigned");
    }
    let again = sign(&good);
    assert!(is_invalid(&[&again, &again]), "nobody could say which of two counts");
    for other in [Use::Refresh, Use::Id, Use::Data, Use::Device] {
        assert!(is_invalid(&[&sign(&Claims { cove_use: other, ..good.clone() })]), "{other:?}");
    }

    let past = Claims { nbf: 0, iat: 0, exp: good.iat, ..good.clone() };
    assert_eq!(opens(&[&sign(&past)]), Err(SessionTokenError::Expired));
    assert!(is_invalid(&[&sign(&Claims { nbf: good.nbf + 600, ..good.clone() })]), "of the future");
    let foreign = Claims { tid: "00000000-0000-0000-0000-0000000000ff".to_owned(), ..good.clone() };
    assert_eq!(opens(&[&sign(&foreign)]), Err(SessionTokenError::Tenant));
    for audience in
        ["https://management.azure.com", "", "https://dynamicsessions.io.evil.example", "dynamicsessions.io"]
    {
        let other = Claims { aud: audience.to_owned(), ..good.clone() };
        assert_eq!(opens(&[&sign(&other)]), Err(SessionTokenError::Audience(audience.to_owned())));
    }
}

/// A platform on a clock of last winter gives tokens, and takes them, by the machine's clock.
#[tokio::test]
async fn a_virtual_clock_makes_no_token_older() {
    let world = World::new().await;
    let good = claims(&world);
    assert!(good.iat > world.plane.clock().now().as_second());
    let token = format!("Bearer {}", world.plane.token_key().sign(&good));
    assert_eq!(world.plane.check_session_token(&fields(&[&token])), Ok(()));
    let next = world.restarted().await;
    assert_eq!(next.plane.check_session_token(&fields(&[&token])), Ok(()), "the key is kept");
}
