//! L7 proxy: routing, activation from zero, draining, WebSocket, TLS.
//!
//! A request goes through named phases (`proxy`): find the app by host (`routes`), be admitted and given a replica by its
//! revision's gate (`gate`), be sent on a pooled connection (`upstream`, `pool`), stream its answer back (`body`, `upgrade`).
//!
//! **Invariant:** a request for an app at zero is held, never refused, until a limit of [`IngressConfig`] says so.
//! **Invariant:** the ingress decides neither how many replicas run nor which are ready; it is told.

mod access;
mod answer;
mod arrivals;
mod auth;
mod body;
mod challenge;
mod client_certificate;
mod config;
mod connection;
mod cors;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod headers;
mod ingress;
mod interim;
mod io;
mod last_words;
mod limits;
mod listen;
mod observe;
mod policy;
mod pool;
mod proxy;
pub mod proxy_protocol;
mod quiet;
mod request_body;
mod resilience;
mod routes;
mod shards;
mod stall;
mod sticky;
mod target;
mod tcp;
mod tls;
mod unread;
mod unreadable;
mod upgrade;
mod upstream;
mod websocket;

pub use access::AccessLogConfig;
pub use auth::{AuthSources, Tell, seal::AuthKey};
pub use challenge::{Challenges, Expected, TooManyChallenges};
pub use config::IngressConfig;
pub use ingress::{Ingress, IngressError, IngressHandle, IngressListeners, IngressSources};
pub use io::Guarded;
pub use listen::bind;
pub use resilience::{Ejected, ResilienceCounts};
pub use unread::ReadOut;
