//! W3: what is served, what is documented and what the policy allows are the same; nothing else answers on the API's
//! listener.

use anyhow::Result;
use cxmpute_wire::MicroCredits;

use crate::client::Client;
use crate::contract::{Contract, Found};
use crate::settings::Setting;
use crate::verdict::Verdict;
use crate::world::World;

/// The assertion that catches a route that was left in.
pub const CAUGHT_BY: &str = "nothing undocumented is served";

/// Every method that a path is asked with.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"];

/// Where programs of this and other kinds keep what nobody should see.
const USUAL: [&str; 40] = [
    "/",
    "/v1",
    "/v1/",
    "/api",
    "/api/",
    "/api/v1",
    "/api/v1/",
    "/api/v2/models",
    "/v2/models",
    "/models",
    "/metrics",
    "/v1/metrics",
    "/api/v1/metrics",
    "/debug",
    "/debug/vars",
    "/debug/pprof/",
    "/v1/debug",
    "/admin",
    "/v1/admin",
    "/api/v1/admin",
    "/internal",
    "/status",
    "/health",
    "/v1/health",
    "/v1/healthz",
    "/v1/readyz",
    "/v1/openapi.json",
    "/swagger.json",
    "/swagger-ui/",
    "/redoc",
    "/graphql",
    "/console",
    "/actuator/env",
    "/server-status",
    "/.env",
    "/.git/config",
    "/favicon.ico",
    "/robots.txt",
    "/v1/users",
    "/v1/providers",
];

/// The gate.
///
/// # Errors
/// The world could not be built, or a connection broke.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("W3");
    let world = World::plan(setting).start().await?;
    let contract = Contract::of(world.address).await?;
    verdict.check(
        "the served document is the one that is checked in",
        contract.document() == Contract::shared().document(),
        "another document",
    );
    let stranger = Client::anonymous(world.address);
    for path in USUAL {
        for method in METHODS {
            verdict.count += 1;
            let reply = raw(&stranger, method, path, None).await?;
            let hidden = contract.find(method, path) == Found::NoPath && reply.0 == 404;
            verdict.check(CAUGHT_BY, hidden, format!("{method} {path} -> {}", reply.0));
        }
    }
    let user = world.account("user@example.org", MicroCredits(0)).await?;
    for (template, _, operation) in contract.operations() {
        let path = template.replace("{id}", "stage").replace("{provision_id}", "pv_aaaaaaaaaaaaaaaa");
        let prefixes: &[&str] = if contract.is_at_root(template) { &[""] } else { &["/v1", "/api/v1"] };
        for prefix in prefixes {
            let path = format!("{prefix}{path}");
            for method in METHODS {
                verdict.count += 1;
                let (status, headers, body) = raw(&stranger, method, &path, None).await?;
                let judged = contract.check(method, &path, status, &headers, &body);
                verdict.check("every answer is documented", judged.is_ok(), format!("{judged:?}"));
                let found = contract.find(method, &path);
                let served = matches!(found, Found::Operation(..));
                verdict.check(
                    "a method that is not documented is refused",
                    served || status == 405,
                    format!("{method} {path} -> {status}"),
                );
                let public = operation["x-access"] == "public";
                verdict.check(
                    "a stranger opens public routes only",
                    !served || public == (200..400).contains(&status),
                    format!("{method} {path} -> {status}"),
                );
            }
        }
        if operation["x-access"] == "node_signature" {
            let (status, ..) = raw(&user.client, "GET", &format!("/v1{path}"), None).await?;
            verdict.check(
                "an API key opens no route for nodes",
                status >= 400,
                format!("{path} -> {status}"),
            );
        }
    }
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

type Raw = (u16, Vec<(String, String)>, Vec<u8>);

/// One request whose answer is not judged by the client.
async fn raw(client: &Client, method: &str, path: &str, body: Option<&str>) -> Result<Raw> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", client.address);
    if let Some(key) = &client.key {
        head.push_str(&format!("authorization: Bearer {key}\r\n"));
    }
    let body = body.unwrap_or_default();
    head.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    let mut conversation = client.send_bytes(head.as_bytes()).await?;
    conversation.read_head().await?;
    // An answer to HEAD has the length of a body that does not come.
    let body = if method == "HEAD" { Vec::new() } else { conversation.rest().await? };
    Ok((conversation.status, conversation.headers, body))
}
