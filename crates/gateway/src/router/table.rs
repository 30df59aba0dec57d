//! The rows.

use axum::routing::{delete, get, post, put};
use http::Method;

use super::{
    Access, Cost, Handler, Meter, Operation, RateClass, Route, account as about, inference, media,
    provider as node, translated,
};
use crate::api::{account, anthropic, docs, health, openai, provider, services};
use crate::limits;

/// Paid work: a key, a meter, all limits.
const fn work(path: &'static str, meter: Meter, operation: &'static Operation, handler: Handler) -> Route {
    Route {
        method: Method::POST,
        path,
        access: Access::Key,
        cost: Cost::Work,
        rate: RateClass::Work,
        meter: Some(meter),
        body_limit: limits::BODY,
        prefixed: true,
        operation,
        handler,
    }
}

/// Paid work on sound or pictures.
const fn large(path: &'static str, meter: Meter, operation: &'static Operation, handler: Handler) -> Route {
    let mut route = work(path, meter, operation, handler);
    route.body_limit = limits::MEDIA_BODY;
    route
}

/// Paid work on a conversation, which may hold images.
const fn conversation(path: &'static str, operation: &'static Operation, handler: Handler) -> Route {
    let mut route = work(path, Meter::Text, operation, handler);
    route.body_limit = limits::CONVERSATION_BODY;
    route
}

/// Something that a user reads.
const fn read(
    path: &'static str,
    access: Access,
    cost: Cost,
    operation: &'static Operation,
    handler: Handler,
) -> Route {
    let rate = match access {
        Access::Public => RateClass::Free,
        Access::Key | Access::ProviderKey => RateClass::Requests,
        Access::Node => RateClass::Signed,
    };
    Route {
        method: Method::GET,
        path,
        access,
        cost,
        rate,
        meter: None,
        body_limit: 0,
        prefixed: true,
        operation,
        handler,
    }
}

/// Something that is worked out here and costs nothing.
const fn count(path: &'static str, operation: &'static Operation, handler: Handler) -> Route {
    let mut route = report(Method::POST, path, Access::Key, operation, handler);
    route.cost = Cost::Cheap;
    route.body_limit = limits::BODY;
    route
}

/// A change that a node or a device asks for.
const fn report(
    method: Method,
    path: &'static str,
    access: Access,
    operation: &'static Operation,
    handler: Handler,
) -> Route {
    let rate = match access {
        Access::Node => RateClass::Signed,
        Access::Public | Access::Key | Access::ProviderKey => RateClass::Requests,
    };
    Route {
        method,
        path,
        access,
        cost: Cost::Store,
        rate,
        meter: None,
        body_limit: limits::PROVIDER_BODY,
        prefixed: true,
        operation,
        handler,
    }
}

/// Something for everybody, at the root.
const fn root(path: &'static str, operation: &'static Operation, handler: Handler) -> Route {
    let mut route = read(path, Access::Public, Cost::Cheap, operation, handler);
    route.prefixed = false;
    route
}

/// The table.
pub static ROUTES: &[Route] = &[
    // For users: OpenAI's shapes.
    conversation("/chat/completions", &inference::CHAT, || post(openai::chat::create_chat_completion)),
    work("/completions", Meter::Text, &inference::COMPLETION, || post(openai::completion::create_completion)),
    conversation("/responses", &translated::RESPONSES, || post(openai::responses::create_response)),
    work("/embeddings", Meter::Embedding, &inference::EMBEDDING, || {
        post(openai::embedding::create_embedding)
    }),
    work("/rerank", Meter::Embedding, &media::RERANK, || post(openai::rerank::create_rerank)),
    work("/audio/speech", Meter::Characters, &media::SPEECH, || post(openai::speech::create_speech)),
    large("/audio/transcriptions", Meter::Seconds, &media::TRANSCRIPTION, || {
        post(openai::transcription::create_transcription)
    }),
    work("/images/generations", Meter::Drawn, &media::IMAGES, || post(openai::image::create_images)),
    // For users: Anthropic's shapes.
    conversation("/messages", &translated::MESSAGES, || post(anthropic::messages::create_message)),
    count("/messages/count_tokens", &translated::COUNT_TOKENS, || post(anthropic::count::count_tokens)),
    // For users: the first seed's shapes.
    work("/tts", Meter::Characters, &media::TTS, || post(openai::speech::create_tts)),
    large("/m/caption", Meter::Images, &media::CAPTION, || post(services::sight::create_caption)),
    large("/m/query", Meter::Images, &media::QUERY, || post(services::sight::create_answer)),
    large("/m/detect", Meter::Images, &media::DETECT, || post(services::sight::create_detection)),
    large("/m/point", Meter::Images, &media::POINT, || post(services::sight::create_pointing)),
    work("/image", Meter::Drawn, &media::IMAGE, || post(openai::image::create_seed_image)),
    work("/scrape", Meter::Pages, &media::SCRAPE, || post(services::scrape::create_scrape)),
    // What can be asked for.
    read("/models", Access::Public, Cost::Cheap, &inference::MODELS, || get(openai::model::list_models)),
    read("/models/{*id}", Access::Public, Cost::Cheap, &inference::MODEL, || get(openai::model::get_model)),
    // For users: what it cost.
    read("/generation", Access::Key, Cost::Store, &about::GENERATION, || {
        get(account::generation::get_generation)
    }),
    read("/credits", Access::Key, Cost::Store, &about::CREDITS, || get(account::credits::get_credits)),
    read("/key", Access::Key, Cost::Store, &about::OWN_KEY, || get(account::key::get_key)),
    // For nodes.
    read("/tunnel", Access::Node, Cost::Store, &node::TUNNEL, || get(provider::tunnel::open_tunnel)),
    report(Method::PUT, "/provisions/{provision_id}", Access::Node, &node::PUT_PROVISION, || {
        put(provider::provision::put_provision)
    }),
    read("/provisions/{provision_id}", Access::Node, Cost::Store, &node::GET_PROVISION, || {
        get(provider::provision::get_provision)
    }),
    read("/blobs/{sha256}", Access::Node, Cost::Store, &node::GET_BLOB, || get(provider::blob::get_blob)),
    // For programs written for the first seed (DESIGN D7).
    report(Method::POST, "/providers/new", Access::ProviderKey, &node::SEED_NEW, || {
        post(provider::seed::enrol_device)
    }),
    report(Method::POST, "/providers/start", Access::ProviderKey, &node::SEED_START, || {
        post(provider::seed::start_device)
    }),
    report(Method::POST, "/providers/start/callback", Access::ProviderKey, &node::SEED_CALLBACK, || {
        post(provider::seed::report_started)
    }),
    report(Method::POST, "/providers/end", Access::ProviderKey, &node::SEED_END, || {
        post(provider::seed::end_services)
    }),
    report(Method::POST, "/providers/delete", Access::ProviderKey, &node::SEED_DELETE_POST, || {
        post(provider::seed::retire_device)
    }),
    report(Method::DELETE, "/providers/delete", Access::ProviderKey, &node::SEED_DELETE, || {
        delete(provider::seed::retire_device)
    }),
    // For load balancers, and about this API.
    root("/healthz", &about::HEALTHZ, || get(health::get_health)),
    root("/readyz", &about::READYZ, || get(health::get_readiness)),
    root("/openapi.json", &about::DOCUMENT, || get(docs::get_document)),
    root("/docs", &about::REFERENCE, || get(docs::get_reference)),
];
