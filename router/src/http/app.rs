//! Routes.

use std::{cell::OnceCell, sync::Arc};

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, ALLOW, HeaderName, HeaderValue},
};

use super::{error, generate, pages, receive, stream::Body, tokenize};
use crate::{
    config::records::HttpConfig,
    error::{Error, Reason},
    service::Service,
    validate::Endpoint,
};

/// The request's id.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest name of the client's that an error repeats, in characters.
pub(super) const ECHO_CHARS_MAX: usize = 64;

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
    Detokenize,
    Page(Page<'a>),
}

/// A path that only shows something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page<'a> {
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
            "/detokenize" => Self::Detokenize,
            "/v1/models" => Self::Page(Page::Models),
            "/health" => Self::Page(Page::Health),
            "/ready" => Self::Page(Page::Ready),
            "/metrics" => Self::Page(Page::Metrics),
            "/status" => Self::Page(Page::Status),
            "/version" => Self::Page(Page::Version),
            "/openapi.json" => Self::Page(Page::OpenApi),
            _ => Self::Page(Page::Model(path.strip_prefix("/v1/models/")?)),
        })
    }

    fn takes_body(self) -> bool {
        !matches!(self, Self::Page(_))
    }

    /// Its methods, as `Allow` names them.
    fn methods(self) -> &'static str {
        if self.takes_body() {
            "POST, OPTIONS"
        } else {
            "GET, HEAD, OPTIONS"
        }
    }

    fn takes(self, method: &Method) -> bool {
        // hyper leaves the body away where the method is HEAD.
        if self.takes_body() {
            method == Method::POST
        } else {
            method == Method::GET || method == Method::HEAD
        }
    }
}

/// Media types that a client takes.
fn accept(headers: &HeaderMap) -> Option<&str> {
    headers.get(ACCEPT)?.to_str().ok()
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
        let path = request.uri().path().to_owned();
        let Some(route) = Route::of(&path) else {
            receive::discard(request.into_body(), self).await;
            return unknown(&path);
        };
        if !route.takes(request.method()) {
            let is_question = request.method() == Method::OPTIONS;
            receive::discard(request.into_body(), self).await;
            return methods(route, is_question);
        }
        match route {
            // Boxed: hyper and the layers above each move the future, kilobytes otherwise.
            Route::Generate(to) => Box::pin(generate::respond(self, to, request)).await,
            Route::Tokenize => tokenize::respond(self, request).await,
            Route::Detokenize => tokenize::respond_back(self, request).await,
            Route::Page(page) => {
                let (head, body) = request.into_parts();
                receive::discard(body, self).await;
                self.page(page, &head.headers).await
            }
        }
    }

    async fn page(&self, page: Page<'_>, headers: &HeaderMap) -> Response<Body> {
        match page {
            Page::Models => pages::models(self),
            Page::Model(name) => pages::model(self, &plain(name)),
            Page::Ready => pages::ready(self).await,
            Page::Metrics => pages::metrics(self, accept(headers)).await,
            Page::Status => pages::status(self).await,
            Page::Version => pages::version(),
            Page::OpenApi => pages::openapi(self),
            Page::Health => pages::health(self),
        }
    }
}

fn unknown(path: &str) -> Response<Body> {
    let path: String = path.chars().take(ECHO_CHARS_MAX).collect();
    let message = format!(
        "no route {path:?}; there are /v1/chat/completions, /v1/completions, /v1/models, \
         /tokenize, /detokenize"
    );
    error::response(&Error::new(Reason::NotFound, message))
}

/// Tells the methods of a route, which were asked for or are not that of the request.
fn methods(route: Route<'_>, is_question: bool) -> Response<Body> {
    let mut response = if is_question {
        let mut response = Response::new(Body::whole(Vec::new()));
        *response.status_mut() = StatusCode::NO_CONTENT;
        response
    } else {
        let message = format!("this route takes {}", route.methods());
        error::response(&Error::new(Reason::MethodNotAllowed, message))
    };
    let allowed = HeaderValue::from_static(route.methods());
    response.headers_mut().insert(ALLOW, allowed);
    response
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
