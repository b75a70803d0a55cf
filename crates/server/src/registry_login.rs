//! Who may use the embedded registry: `docker login` with a client of this server, once clients are configured.
//!
//! **Invariant:** a server that is reached from outside never gives or takes an image without a client's secret.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use cove_images::AuthorizationCheck;

use crate::config::ClientConfig;

/// The check for configured clients; `None` on a developer's machine, where everybody on loopback may.
pub(crate) fn check(clients: &[ClientConfig]) -> Option<AuthorizationCheck> {
    if clients.is_empty() {
        return None;
    }
    let logins: Vec<Vec<u8>> =
        clients.iter().map(|client| format!("{}:{}", client.client_id, client.secret).into_bytes()).collect();
    Some(Arc::new(move |authorization, _repository, _access| {
        let Some(login) = authorization.and_then(basic) else { return false };
        logins.iter().any(|known| equal(known, &login))
    }))
}

/// `client_id:secret` of an `Authorization: Basic …` header.
fn basic(authorization: &str) -> Option<Vec<u8>> {
    let (scheme, encoded) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(encoded.trim()).ok())?
}

/// Compares without telling by its duration where the first difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use cove_images::Access;

    use super::*;

    #[test]
    fn only_clients_with_their_secret_may() {
        assert!(check(&[]).is_none());
        let client = ClientConfig { client_id: "ci".into(), secret: "long secret".into() };
        let check = check(&[client]).unwrap();
        let header = |login: &str| format!("Basic {}", STANDARD.encode(login));
        assert!(check(Some(&header("ci:long secret")), "app", Access::Push));
        for bad in ["ci:long secreT", "ci:", "", "ci:long secret2"] {
            assert!(!check(Some(&header(bad)), "app", Access::Pull), "{bad}");
        }
        for bad in [None, Some("Bearer x"), Some("Basic !"), Some("")] {
            assert!(!check(bad, "app", Access::Pull), "{bad:?}");
        }
    }
}
