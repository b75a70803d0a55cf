//! Answers that are no success, in Azure's envelope.
//!
//! **Invariant:** an identifier is never in an answer or in a log: who knows it reaches its session.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use cove_arm::ArmError;
use cove_model::AllocateError;
use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::ports::TokenProblem;

/// A request that was not forwarded, or whose session did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What is wrong and what would be right.
    pub error: Box<ArmError>,
    headers: Vec<(HeaderName, &'static str)>,
}

impl Refused {
    /// With a status, a code and words.
    #[must_use]
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { error: Box::new(ArmError::new(status, code, message)), headers: Vec::new() }
    }

    fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn unknown_pool() -> Self {
        Self::new(
            404,
            "SessionPoolNotFound",
            "The session pool does not exist; check subscription, resource group and name.",
        )
    }

    pub(crate) fn unknown_session() -> Self {
        Self::new(404, "SessionNotFound", "The session pool has no session of this identifier.")
    }

    /// The memory for what sessions answer is full.
    pub(crate) fn no_room() -> Self {
        let words =
            "Too many long answers of sessions are being read and sent; try again, or write long results to files.";
        Self::new(503, "TooManyLongAnswers", words).with(header::RETRY_AFTER, "5")
    }

    pub(crate) fn unreachable(why: impl std::fmt::Display) -> Self {
        Self::new(502, "SessionUnreachable", format!("The session did not answer as it should: {why}."))
    }
}

impl From<ArmError> for Refused {
    fn from(error: ArmError) -> Self {
        Self { error: Box::new(error), headers: Vec::new() }
    }
}

impl From<TokenProblem> for Refused {
    fn from(problem: TokenProblem) -> Self {
        let challenge = |message: String| {
            Self::new(401, "AuthenticationFailed", message)
                .with(header::WWW_AUTHENTICATE, "Bearer resource=\"https://dynamicsessions.io\"")
        };
        match problem {
            TokenProblem::Missing => challenge(
                "The 'Authorization' header is missing; send `Authorization: Bearer` and a token for https://dynamicsessions.io."
                    .to_owned(),
            ),
            TokenProblem::Invalid(why) => challenge(format!("The access token is invalid: {why}.")),
            TokenProblem::Expired => challenge("The access token has expired; get a new one.".to_owned()),
            TokenProblem::Audience(audience) => challenge(format!(
                "The access token is for '{audience}'; get one for https://dynamicsessions.io."
            )),
            TokenProblem::Tenant => {
                Self::new(403, "AuthorizationFailed", "The access token is of another tenant than this server's.")
            }
        }
    }
}

impl From<AllocateError> for Refused {
    fn from(error: AllocateError) -> Self {
        match error {
            AllocateError::UnknownPool => Self::unknown_pool(),
            AllocateError::PoolFull { max } => Self::new(
                404,
                "SessionPoolFull",
                format!(
                    "All {max} sessions of the pool are allocated; stop one, wait for one to cool down, or raise `maxConcurrentSessions`."
                ),
            ),
            AllocateError::NotReadyInTime { waited_ms } => Self::new(
                503,
                "SessionNotReady",
                format!(
                    "No session became ready within {} s; try again, or look at the pool's console log.",
                    waited_ms / 1000
                ),
            )
            .with(header::RETRY_AFTER, "5"),
            AllocateError::Failed { reason, message } => {
                Self::new(503, "SessionStartFailed", format!("A session could not be made ({reason}): {message}."))
                    .with(header::RETRY_AFTER, "5")
            }
            AllocateError::BadIdentifier(error) => Self::new(400, "SessionIdentifierInvalid", format!("{error}.")),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::new(Body::from(self.error.to_json().to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
        if let Ok(code) = HeaderValue::try_from(&self.error.code) {
            headers.insert("x-ms-error-code", code);
        }
        for (name, value) in self.headers {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
