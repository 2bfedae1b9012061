//! Routes.

use std::{cell::OnceCell, sync::Arc};

use bytes::Bytes;
use hyper::{Method, Request, Response, body::Incoming, header::ACCEPT};

use super::{error, generate, pages, stream::Body, tokenize};
use crate::{
    config::records::HttpConfig,
    error::{Error, Reason},
    service::Service,
    validate::Endpoint,
};

/// Longest part of an unknown path that an error repeats, in characters.
const ECHO_CHARS_MAX: usize = 64;

/// What every route of one front thread shares.
#[derive(Debug)]
pub(super) struct App {
    pub(super) service: Arc<Service>,
    pub(super) config: HttpConfig,
    /// Names model and version: the same fingerprint and seed give the same answer.
    pub(super) fingerprint: String,
    /// `/openapi.json`, made when first asked for.
    pub(super) openapi: OnceCell<Bytes>,
}

/// A path of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route<'a> {
    Generate(Endpoint),
    Tokenize,
    Models,
    Model(&'a str),
    Health,
    Ready,
    Metrics,
    Status,
    Version,
    OpenApi,
}

impl<'a> Route<'a> {
    fn of(path: &'a str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::Generate(Endpoint::Chat),
            "/v1/completions" => Self::Generate(Endpoint::Completions),
            "/tokenize" => Self::Tokenize,
            "/v1/models" => Self::Models,
            "/health" => Self::Health,
            "/ready" => Self::Ready,
            "/metrics" => Self::Metrics,
            "/status" => Self::Status,
            "/version" => Self::Version,
            "/openapi.json" => Self::OpenApi,
            _ => Self::Model(path.strip_prefix("/v1/models/")?),
        })
    }

    fn method(self) -> Method {
        match self {
            Self::Generate(_) | Self::Tokenize => Method::POST,
            _ => Method::GET,
        }
    }
}

/// Media types that a client takes.
fn accept(request: &Request<Incoming>) -> Option<&str> {
    request.headers().get(ACCEPT)?.to_str().ok()
}

/// A segment of a path without its percent escapes: clients write the slash of `org/model` as one.
/// What is no escape stays as it is.
fn plain(segment: &str) -> String {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'%', high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digits = [*high, *low];
                (std::str::from_utf8(&digits).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok())
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() {
            rest.get(3..).unwrap_or_default()
        } else {
            after
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl App {
    pub(super) fn new(service: Arc<Service>, config: HttpConfig) -> Self {
        let fingerprint = pages::fingerprint(service.model());
        Self {
            service,
            config,
            fingerprint,
            openapi: OnceCell::new(),
        }
    }

    /// Answers one request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let method = request.method();
        let Some(route) = Route::of(request.uri().path()) else {
            let path: String = request.uri().path().chars().take(ECHO_CHARS_MAX).collect();
            let message = format!(
                "no route {path:?}; there are /v1/chat/completions, /v1/completions, /v1/models"
            );
            return error::response(&Error::new(Reason::NotFound, message), None);
        };
        let expected = route.method();
        // hyper leaves the body away where the method is HEAD.
        if *method != expected && !(*method == Method::HEAD && expected == Method::GET) {
            let message = format!("this route takes {expected}");
            let wrong = Error::new(Reason::MethodNotAllowed, message);
            return error::not_allowed(&wrong, &expected);
        }
        match route {
            Route::Generate(endpoint) => generate::respond(self, endpoint, request).await,
            Route::Tokenize => tokenize::respond(self, request).await,
            Route::Models => pages::models(self),
            Route::Model(name) => pages::model(self, &plain(name)),
            Route::Health => pages::health(),
            Route::Ready => pages::ready(self),
            Route::Metrics => pages::metrics(self, accept(&request)).await,
            Route::Status => pages::status(self).await,
            Route::Version => pages::version(),
            Route::OpenApi => pages::openapi(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_a_path_are_undone() {
        for (written, meant) in [
            ("org%2Fmodel", "org/model"),
            ("a%20b%c3%A9", "a b\u{e9}"),
            ("100%", "100%"),
            ("%2", "%2"),
            ("%+1%zz", "%+1%zz"),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(plain(written), meant);
        }
    }
}
