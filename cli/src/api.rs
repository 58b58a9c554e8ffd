//! The control plane's HTTP API, as commands use it: one connection, mTLS.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parallax_runtime::env::{Env, System};
use parallax_security::{Authority, Error as SecurityError, Expect, Kind, connect_plain};
use serde_json::Value as Json;

use crate::{
    args::Args,
    exit::{Code, Exit, Result},
    instance::{self, authority_dir, local_tls},
    settings::Settings,
    start::OPERATOR,
};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 << 20;

/// A connection to the API.
pub struct Api {
    url: String,
    authority: String,
    requests: SendRequest<Full<Bytes>>,
}

/// Where the API is, and where the certificates are.
struct Target {
    url: String,
    data_dir: PathBuf,
}

impl Target {
    /// The flag or `PARALLAX_API_URL`; else the instance of the data directory; else where the settings have it.
    fn find(args: &Args) -> Result<Self> {
        let settings = Settings::load(&args.place, &[])?.settings;
        let running = || instance::running(&settings.data_dir).iter().find_map(|found| found.http);
        let url = args.api_url.clone();
        let url =
            url.unwrap_or_else(|| format!("https://{}", running().unwrap_or(settings.control_plane.http)));
        Ok(Self { url, data_dir: settings.data_dir })
    }

    fn not_running(&self, why: impl std::fmt::Display) -> Exit {
        let message =
            format!("no control plane answers at {}: {why}; start one with `parallax start`", self.url);
        Exit::new(Code::NotRunning, message)
    }
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    /// [`Code::NotRunning`] when nobody answers; certificates that are missing or refused.
    pub async fn connect(args: &Args) -> Result<Self> {
        let target = Target::find(args)?;
        let uri: Uri = target.url.parse().map_err(|e| Exit::usage(format!("API URL {}: {e}", target.url)))?;
        let plain = match uri.scheme_str() {
            Some("https") => false,
            Some("http") => true,
            _ => {
                let message = format!("API URL {} begins with neither https:// nor http://", target.url);
                return Err(Exit::usage(message));
            }
        };
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let addr = format!("{host}:{port}");
        let stream = async {
            if plain {
                return connect_plain(&System, &addr).await.map_err(|e| target.not_running(e));
            }
            let tls = operator(&target)?;
            tls.connect(&System, &addr, &Expect::kind(Kind::ControlPlane)).await.map_err(|e| match e {
                SecurityError::Unreachable { .. } => target.not_running(e),
                // Somebody is there, but not the control plane of this data directory.
                SecurityError::Handshake { .. } | SecurityError::WrongPeer { .. } => target.not_running(e),
                other => Exit::failed(format!("{}: {other}", target.url)),
            })
        };
        let stream = tokio::time::timeout(CONNECT, stream)
            .await
            .map_err(|_| target.not_running(format!("no answer within {CONNECT:?}")))??;
        let handshake =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (requests, connection) = handshake.map_err(|e| target.not_running(e))?;
        tokio::spawn(connection);
        Ok(Self { authority: addr, url: target.url, requests })
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// What the API complains of.
    pub async fn get(&mut self, path: &str) -> Result<Json> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Sends JSON.
    ///
    /// # Errors
    /// What the API complains of.
    pub async fn post(&mut self, path: &str, body: &Json) -> Result<Json> {
        self.send(Method::POST, path, Bytes::from(body.to_string())).await
    }

    /// Sends JSON that takes a resource's place.
    ///
    /// # Errors
    /// What the API complains of.
    pub async fn put(&mut self, path: &str, body: &Json) -> Result<Json> {
        self.send(Method::PUT, path, Bytes::from(body.to_string())).await
    }

    /// Deletes a resource.
    ///
    /// # Errors
    /// What the API complains of.
    pub async fn delete(&mut self, path: &str) -> Result<()> {
        let response = self.request(Method::DELETE, path, Bytes::new()).await?;
        if response.status().is_success() { Ok(()) } else { self.answer(response).await.map(drop) }
    }

    /// Reads server-sent events, those that come of `body` if there is one, and hands each one's data to `each`, until
    /// the stream ends.
    ///
    /// # Errors
    /// What the API complains of; a connection that is lost.
    pub async fn events(
        &mut self,
        path: &str,
        body: Option<&Json>,
        mut each: impl FnMut(&Json),
    ) -> Result<()> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let mut response = self.request(method, path, body).await?;
        if !response.status().is_success() {
            return self.answer(response).await.map(drop);
        }
        let mut text = Vec::new();
        while let Some(frame) = response.frame().await {
            let frame = frame.map_err(|e| self.lost(&e))?;
            text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
            while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                let event = String::from_utf8_lossy(&event);
                let data: String = event.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
                if !data.is_empty() {
                    each(&serde_json::from_str(&data).map_err(|e| self.lost(&e))?);
                }
            }
        }
        Ok(())
    }

    async fn send(&mut self, method: Method, path: &str, body: Bytes) -> Result<Json> {
        let response = self.request(method, path, body).await?;
        self.answer(response).await
    }

    fn lost(&self, e: &dyn std::fmt::Display) -> Exit {
        Exit::failed(format!("{}: the connection was lost: {e}", self.url))
    }

    async fn request(&mut self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.authority))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(Exit::usage)?;
        let sent = self.requests.send_request(request).await;
        sent.map_err(|e| self.lost(&e))
    }

    async fn answer(&self, response: Response<Incoming>) -> Result<Json> {
        let status = response.status();
        let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|e| self.lost(&e))?.to_bytes();
        let json: Json = serde_json::from_slice(&body).map_err(|e| {
            Exit::failed(format!("{} answered {status} with what is not JSON: {e}", self.url))
        })?;
        // An unhealthy plane still describes itself.
        if status.is_success() || json.get("code").is_none() {
            return Ok(json);
        }
        let detail = json["detail"].as_str().unwrap_or("no detail was given").to_owned();
        let code = match status {
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => Code::Usage,
            _ => Code::Failed,
        };
        Err(Exit::new(code, detail))
    }
}

/// The operator's certificate from the local authority, or from `PARALLAX_TLS_*` where an authority of its own
/// issues them.
fn operator(target: &Target) -> Result<parallax_security::Tls> {
    let now: SystemTime = System.system_time();
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let (Some(ca), Some(cert), Some(key)) =
        (var("PARALLAX_TLS_CA"), var("PARALLAX_TLS_CERT"), var("PARALLAX_TLS_KEY"))
    {
        let files = parallax_security::Files { ca, cert, key };
        return parallax_security::Tls::load(files, now).map_err(Exit::usage);
    }
    let dir = authority_dir(&target.data_dir);
    let authority = Authority::open_existing(&dir, now).map_err(|e| match e {
        SecurityError::Missing { .. } => {
            target.not_running(format!("there are no certificates in {} yet", Path::new(&dir).display()))
        }
        other => Exit::usage(other),
    })?;
    local_tls(&authority, &target.data_dir, Kind::Operator, OPERATOR, now).map_err(Exit::usage)
}
