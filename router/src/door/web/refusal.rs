//! Requests that are refused: status, label of the metric, and a body that says what to do. The one place where errors of
//! the inside become HTTP.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use tonic::{Code, Status};

/// See the module.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    /// For the metric.
    pub reason: &'static str,
    message: String,
}

impl Refusal {
    /// The request is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, reason: "bad_request", message: message.into() }
    }

    /// The token is missing, forged, expired, or of a tenant that is gone: which of them is nobody's business.
    pub fn bad_token() -> Self {
        let message = "the token is missing, wrong or expired: get one from POST /notification2/token";
        Self { status: StatusCode::UNAUTHORIZED, reason: "bad_token", message: message.to_owned() }
    }

    /// Somebody else has the group.
    pub fn occupied(message: impl Into<String>) -> Self {
        Self { status: StatusCode::CONFLICT, reason: "occupied", message: message.into() }
    }

    /// The tenant's sockets are all taken.
    pub fn sockets(most: usize) -> Self {
        let message = format!("the tenant has {most} WebSockets at this router, the most that it may have");
        Self { status: StatusCode::TOO_MANY_REQUESTS, reason: "sockets", message }
    }

    /// Try again.
    pub fn unavailable(message: &str) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self { status, reason: "unavailable", message: message.to_owned() }
    }

    /// This is no request for a WebSocket.
    pub fn no_upgrade(status: StatusCode, message: &str) -> Self {
        Self { status, reason: "bad_request", message: message.to_owned() }
    }

    /// There is nothing at this path.
    pub fn no_path() -> Self {
        let message = "there are /notification2/token, /unsubscribe, /consumer/ and /producer/".to_owned();
        Self { status: StatusCode::NOT_FOUND, reason: "no_path", message }
    }

    /// The path is asked with other methods; the header `Allow` names them.
    pub fn wrong_method() -> Self {
        let message = "this path is asked with another method: see the header Allow".to_owned();
        Self { status: StatusCode::METHOD_NOT_ALLOWED, reason: "wrong_method", message }
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let (code, reason) = match status.code() {
            Code::Unauthenticated => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Code::PermissionDenied => (StatusCode::FORBIDDEN, "forbidden"),
            Code::InvalidArgument => (StatusCode::BAD_REQUEST, "bad_request"),
            Code::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Code::AlreadyExists => (StatusCode::CONFLICT, "occupied"),
            Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, "quota"),
            Code::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        Self { status: code, reason, message: status.message().to_owned() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = serde_json::json!({"error": self.reason, "message": self.message}).to_string();
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
        let mut add = |name, value| response.headers_mut().insert(name, HeaderValue::from_static(value));
        match self.status {
            StatusCode::UNAUTHORIZED if self.reason == "unauthorized" => {
                add(header::WWW_AUTHENTICATE, "Basic realm=\"penstock\"");
            }
            // Clients want a challenge; at Basic a browser would ask for a password that a bad token does not lack.
            StatusCode::UNAUTHORIZED => {
                add(header::WWW_AUTHENTICATE, "Bearer realm=\"penstock\"");
            }
            StatusCode::UPGRADE_REQUIRED => {
                add(header::UPGRADE, "websocket");
                add(header::CONNECTION, "Upgrade");
                add(header::SEC_WEBSOCKET_VERSION, "13");
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                add(header::RETRY_AFTER, "1");
            }
            _ => {}
        }
        response
    }
}
