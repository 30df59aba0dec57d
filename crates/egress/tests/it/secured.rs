//! TLS: the name of the URL is what the certificate must show, whatever address was judged.

use std::sync::Arc;

use cxmpute_egress::Wanted;
use cxmpute_egress::connect::Trust;
use cxmpute_runtime::Tasks;
use cxmpute_runtime::lifecycle::OwnedTask;
use parking_lot::Mutex;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

use crate::site::{Asked, Play, serve};
use crate::stage::World;

async fn secured_site(
    tasks: &Tasks,
    name: &str,
) -> (std::net::SocketAddr, Arc<Mutex<Vec<Asked>>>, String, OwnedTask) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
    let notes = asked.clone();
    let task = tasks.spawn_owned("secured-site", async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                let handler: Arc<dyn Fn(&Asked) -> Play + Send + Sync> =
                    Arc::new(|_: &Asked| Play::text("sealed"));
                let _ = serve(stream, &notes, &handler).await;
            }
        }
    });
    (address, asked, made.cert.pem(), task)
}

#[tokio::test]
async fn a_certificate_must_show_the_name_of_the_url() {
    let tasks = Tasks::new();
    let (address, asked, pem, _task) = secured_site(&tasks, "a.example.com").await;
    let world = World { trust: Trust::public().and(pem.as_bytes()).unwrap(), ..World::two_hosts(address) };
    let page = world.fetcher(None).get("https://a.example.com/x?y=1", &Wanted::default()).await.unwrap();
    assert_eq!(&page.body[..], b"sealed");
    let request = asked.lock()[0].clone();
    assert_eq!((request.host(), request.path.as_str()), ("a.example.com", "/x?y=1"));
    assert_eq!(request.header("user-agent"), Some(crate::stage::AGENT));

    let error = world.fetcher(None).get("https://b.example.com/", &Wanted::default()).await.unwrap_err();
    assert_eq!(error.code(), "tls_failed", "another name: {error}");
    let stranger = World { trust: Trust::public(), ..world };
    let error = stranger.fetcher(None).get("https://a.example.com/", &Wanted::default()).await.unwrap_err();
    assert_eq!(error.code(), "tls_failed", "an authority that nobody trusts: {error}");
    assert!(Trust::public().and(b"no certificate").is_err());
}
