//! `/api/openapi.json`: the API's description, OpenAPI 3.1, generated from the handlers.

use ::http::header::CONTENT_TYPE;
use axum::{Extension, body::Bytes, response::IntoResponse};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Content, InfoBuilder, License, OpenApi, Ref, RefOr, ResponseBuilder, content::ContentBuilder},
};

use super::super::edge::{PROBLEM, Problem};

/// This description.
#[utoipa::path(get, path = "/api/openapi.json", tag = "health", responses((status = 200, body = Object)))]
pub(super) async fn show(Extension(Description(text)): Extension<Description>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], text)
}

/// The description as JSON.
#[derive(Clone)]
pub(super) struct Description(Bytes);

/// Says what is true of every operation: its name, and how it fails.
pub(super) fn complete(mut description: OpenApi) -> Description {
    description.info = InfoBuilder::new()
        .title("Parallax")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Control plane for AI agents: who is registered, which patterns there are, and their runs.",
        ))
        .license(Some(License::builder().name("Apache-2.0").identifier(Some("Apache-2.0")).build()))
        .build();
    let components = description.components.get_or_insert_default();
    components.schemas.insert(Problem::name().into_owned(), Problem::schema());
    let content: Content = ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
    let failed = ResponseBuilder::new().description("It was not done").content(PROBLEM, content).build();
    for item in description.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            // Handlers' names are unique among those of one tag only.
            let tag = operation.tags.iter().flatten().next().cloned().unwrap_or_default();
            operation.operation_id = operation.operation_id.take().map(|id| format!("{tag}_{id}"));
            for response in operation.responses.responses.values_mut() {
                if let RefOr::T(response) = response {
                    // OpenAPI wants a sentence; the operation's own has said it.
                    "It was done".clone_into(&mut response.description);
                }
            }
            operation.responses.responses.insert("default".to_owned(), RefOr::T(failed.clone()));
        }
    }
    Description(serde_json::to_vec(&description).expect("a description is plain data").into())
}
