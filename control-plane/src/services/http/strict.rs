//! What no operation takes is refused, by the description of each: query parameters that it does not know or that come
//! twice, and a body where it reads none.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::Arc,
};

use ::http::{Method, request::Parts};
use axum::{
    body::{Body, to_bytes},
    extract::{FromRequestParts, MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body::Body as _;
use serde_json::{Value as Json, json};
use utoipa::openapi::{OpenApi, RefOr, path::ParameterIn};

use crate::error::Error;

/// What would be read of a body that nobody wants. Bytes.
const LOOK: usize = 1024;

/// What an operation takes.
struct Operation {
    parameters: Vec<String>,
    body: bool,
}

/// All operations, by method and path.
#[derive(Clone)]
pub(super) struct Operations(Arc<HashMap<(Method, String), Operation>>);

impl Operations {
    pub(super) fn of(description: &OpenApi) -> Self {
        let mut all = HashMap::new();
        for (path, item) in &description.paths.paths {
            let methods = [
                (Method::GET, &item.get),
                (Method::POST, &item.post),
                (Method::PUT, &item.put),
                (Method::DELETE, &item.delete),
            ];
            for (method, operation) in methods {
                let Some(operation) = operation else { continue };
                let parameters = operation.parameters.iter().flatten();
                let parameters = parameters.filter_map(|parameter| match parameter {
                    RefOr::T(p) if p.parameter_in == ParameterIn::Query => Some(p.name.clone()),
                    _ => None,
                });
                let parameters = parameters.collect();
                let body = operation.request_body.is_some();
                all.insert((method, path.clone()), Operation { parameters, body });
            }
        }
        Self(Arc::new(all))
    }
}

impl Operation {
    fn check_query(&self, query: &str) -> Result<(), Error> {
        let invalid = |problem| Err(Error::Invalid { field: "query", problem });
        let mut given = Vec::new();
        for (key, _) in form_urlencoded::parse(query.as_bytes()) {
            if !self.parameters.iter().any(|known| *known == key) {
                let known = self.parameters.join(", ");
                let known = if known.is_empty() { "none" } else { &known };
                return invalid(format!("\"{key}\" is unknown; known are {known}"));
            }
            if given.contains(&key) {
                return invalid(format!("\"{key}\" is given twice; give it once"));
            }
            given.push(key);
        }
        Ok(())
    }
}

/// Lets through what the operation takes.
pub(super) async fn check(State(all): State<Operations>, request: Request, next: Next) -> Response {
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let operation = path.and_then(|path| all.0.get(&(method, path)));
    let Some(operation) = operation else { return next.run(request).await };
    if let Err(e) = operation.check_query(request.uri().query().unwrap_or_default()) {
        return e.into_response();
    }
    if operation.body || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let nothing = to_bytes(body, LOOK).await.is_ok_and(|body| {
        // Clients send an empty object with any POST.
        body.is_empty() || serde_json::from_slice::<Json>(&body).is_ok_and(|body| body == json!({}))
    });
    if !nothing {
        let problem = "nothing of it would be read; leave it out".to_owned();
        return Error::Invalid { field: "body", problem }.into_response();
    }
    next.run(Request::from_parts(head, Body::empty())).await
}

/// A request's query parameters, which have been checked.
pub(super) struct Query(BTreeMap<String, String>);

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let query = parts.uri.query().unwrap_or_default();
        Ok(Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect()))
    }
}

impl Query {
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub(super) fn number(&self, key: &'static str) -> Result<Option<u64>, Error> {
        let parse = |text: &str| {
            text.parse().map_err(|_| Error::Invalid {
                field: key,
                problem: format!("\"{text}\" is not a whole number from 0 up"),
            })
        };
        self.get(key).map(parse).transpose()
    }
}
