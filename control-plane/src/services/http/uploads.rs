//! What changes `/api/patterns`: uploads, versions, rollback.

use ::http::StatusCode;
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
};
use jiff::Timestamp;
use parallax_prism::Diagnostic;
use parallax_security::Peer;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{super::json::Pattern, Answer, Api, Query, Shared, read};
use crate::{error::Result, patterns, tenant};

/// Body of `POST /api/patterns` and `PUT /api/patterns/:name`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Upload {
    script: String,
    /// Whether another script of the same version is replaced; a `PUT` does so unless told otherwise.
    overwrite: Option<bool>,
}

/// Body of `POST /api/patterns/upload`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct UploadFile {
    filename: String,
    content: String,
    #[serde(default)]
    overwrite: bool,
}

#[derive(Serialize, ToSchema)]
pub(super) struct Uploaded {
    /// `name@version`
    id: String,
    pattern: Pattern,
    message: String,
    /// What is doubtful about it.
    #[schema(value_type = Vec<Object>)]
    warnings: Vec<Diagnostic>,
}

type Created = Result<(StatusCode, Json<Uploaded>)>;

/// Keeps a pattern, as the current version of its name.
#[utoipa::path(
    post, path = "/api/patterns", tag = "patterns", request_body = Upload,
    responses((status = 201, body = Uploaded))
)]
pub(super) async fn create(State(api): Shared, Extension(peer): Extension<Peer>, body: Bytes) -> Created {
    let Upload { script, overwrite } = read(&body)?;
    upload(&api, &peer, "script", &script, "", overwrite.unwrap_or(false)).await
}

/// Keeps a pattern file, as the current version of its pattern.
#[utoipa::path(
    post, path = "/api/patterns/upload", tag = "patterns", request_body = UploadFile,
    responses((status = 201, body = Uploaded))
)]
pub(super) async fn file(State(api): Shared, Extension(peer): Extension<Peer>, body: Bytes) -> Created {
    let UploadFile { filename, content, overwrite } = read(&body)?;
    upload(&api, &peer, &filename, &content, "", overwrite).await
}

/// Keeps a pattern, whose name has to be the path's; another script of the same version is replaced.
#[utoipa::path(
    put, path = "/api/patterns/{name}", tag = "patterns", request_body = Upload,
    responses((status = 201, body = Uploaded))
)]
pub(super) async fn replace(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Bytes,
) -> Created {
    let Upload { script, overwrite } = read(&body)?;
    upload(&api, &peer, "script", &script, &name, overwrite.unwrap_or(true)).await
}

async fn upload(api: &Api, peer: &Peer, origin: &str, script: &str, name: &str, overwrite: bool) -> Created {
    let (pattern, warnings) = patterns::Pattern::validate(origin, script)?;
    pattern.is_called(name, "")?;
    api.catalog.upload(tenant::of(peer), &pattern, &tenant::who(peer), overwrite).await?;
    let (id, message) = (pattern.id(), format!("{} is the current version", pattern.id()));
    let uploaded = Uploaded { id, pattern: Pattern::of(&pattern), message, warnings };
    Ok((StatusCode::CREATED, Json(uploaded)))
}

#[derive(Serialize, ToSchema)]
pub(super) struct Versions {
    /// As the pattern itself spells it.
    name: String,
    count: usize,
    versions: Vec<Version>,
}

/// One of a pattern's versions.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Version {
    version: String,
    /// SHA-256 of the script, in hex.
    hash: String,
    /// The file it came from.
    origin: String,
    /// Whether it is what the bare name means.
    current: bool,
    /// Of one that was uploaded.
    uploaded_at: Option<Timestamp>,
    /// The identity of who uploaded it, or how it came.
    uploaded_by: Option<String>,
}

impl Version {
    fn of(version: &patterns::Version) -> Self {
        let (pattern, upload) = (&version.pattern, version.upload.as_ref());
        Self {
            version: pattern.header.version.clone(),
            hash: pattern.hash.clone(),
            origin: pattern.origin.clone(),
            current: version.current,
            uploaded_at: upload.map(|upload| upload.at),
            uploaded_by: upload.map(|upload| upload.by.clone()),
        }
    }
}

/// All versions of a pattern: first those that were uploaded.
#[utoipa::path(
    get, path = "/api/patterns/{name}/versions", tag = "patterns",
    responses((status = 200, body = Versions))
)]
pub(super) async fn versions(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
) -> Answer<Versions> {
    let versions = api.catalog.versions(tenant::of(&peer), &name)?;
    let name = versions.first().map_or(name, |version| version.pattern.header.name.clone());
    let versions: Vec<_> = versions.iter().map(Version::of).collect();
    Ok(Json(Versions { name, count: versions.len(), versions }))
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Current {
    version: String,
}

/// Makes a version that was uploaded the current one.
#[utoipa::path(
    put, path = "/api/patterns/{name}/current", tag = "patterns", request_body = Current,
    responses((status = 200, body = Pattern))
)]
pub(super) async fn roll_back(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Pattern> {
    let Current { version } = read(&body)?;
    api.catalog.roll_back(tenant::of(&peer), &name, &version).await?;
    Ok(Json(Pattern::of(&*api.catalog.get(tenant::of(&peer), &name, &version)?)))
}

/// Deletes what was uploaded under a name; what stands behind it shows again.
#[utoipa::path(
    delete, path = "/api/patterns/{name}", tag = "patterns",
    params(("version" = Option<String>, Query, description = "Only this one; not the current one")),
    responses((status = 204))
)]
pub(super) async fn delete(
    State(api): Shared,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    query: Query,
) -> Result<StatusCode> {
    api.catalog.delete(tenant::of(&peer), &name, query.get("version")).await?;
    Ok(StatusCode::NO_CONTENT)
}
