use bytes::Bytes;
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_tunnel::{DialError, HttpClient, LinkConfig, Roots, Signer, TransportError, dial, provision_id};
use cxmpute_wire::{Code, Epoch};
use http::Method;
use tokio::net::TcpListener;

use crate::world::{Gateway, certified, config, dial_error, head, key, skewed, soon, work};

#[tokio::test]
async fn a_known_node_gets_a_tunnel_and_its_epoch() {
    let mut gateway = Gateway::start(Clock::system(), LinkConfig::default(), None).await;
    let config = config(&format!("http://{}", gateway.address), key(1), Clock::system(), None);
    let tasks = Tasks::new();
    let node = soon(dial(&config, &tasks)).await.unwrap();
    assert_eq!(node.epoch, Epoch(1));
    assert!((node.server_time.0 - Clock::system().now().0).abs() < 10_000);
    let link = gateway.link().await;
    assert!(!link.is_closed());
}

#[tokio::test]
async fn a_foreign_key_is_refused_with_a_code() {
    let gateway = Gateway::start(Clock::system(), LinkConfig::default(), None).await;
    let config = config(&format!("http://{}", gateway.address), key(2), Clock::system(), None);
    match dial_error(&config).await {
        DialError::Refused { status: 401, code: Some(Code::InvalidSignature), .. } => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_skewed_clock_is_corrected_and_the_next_try_passes() {
    let mut gateway = Gateway::start(Clock::system(), LinkConfig::default(), None).await;
    let config = config(&format!("http://{}", gateway.address), key(1), skewed(-3600), None);
    match dial_error(&config).await {
        DialError::Refused { code: Some(Code::ClockSkew), server_time: Some(_), .. } => {}
        other => panic!("{other:?}"),
    }
    assert!((config.signer.offset_ms() - 3_600_000).abs() < 10_000);
    let _node = soon(dial(&config, &Tasks::new())).await.unwrap();
    gateway.link().await;
}

#[tokio::test]
async fn signed_calls_are_corrected_by_themselves() {
    let gateway = Gateway::start(Clock::system(), LinkConfig::default(), None).await;
    let url = format!("http://{}", gateway.address);
    let client = HttpClient::new(Roots::new(None).unwrap());
    let signer = Signer::new(key(1), skewed(3600));
    let body = Bytes::from(vec![b'x'; 100_000]);
    let answer = soon(client.signed(&signer, &url, Method::PUT, "/a?b=c", body)).await.unwrap();
    let expected = format!("{} /a?b=c 100000", provision_id(&key(1).verifying_key()));
    assert_eq!(answer.body, expected, "{:?}", answer.status);
    let unsigned = soon(client.call(&url, Method::GET, "/a", Vec::new(), Bytes::new())).await.unwrap();
    assert_eq!(unsigned.code(), Some(Code::InvalidSignature));
}

#[tokio::test]
async fn tls_is_trusted_only_with_its_authority() {
    let (ca, tls) = certified();
    let mut gateway = Gateway::start(Clock::system(), LinkConfig::default(), Some(tls)).await;
    let url = format!("https://localhost:{}", gateway.address.port());
    match dial_error(&config(&url, key(1), Clock::system(), None)).await {
        DialError::Transport(TransportError::Tls { .. }) => {}
        other => panic!("{other:?}"),
    }
    let url_by_number = format!("https://127.0.0.1:{}", gateway.address.port());
    match dial_error(&config(&url_by_number, key(1), Clock::system(), Some(ca.path()))).await {
        DialError::Transport(TransportError::Tls { .. }) => {}
        other => panic!("{other:?}"),
    }
    let tasks = Tasks::new();
    let mut node = soon(dial(&config(&url, key(1), Clock::system(), Some(ca.path())), &tasks)).await.unwrap();
    let link = gateway.link().await;
    let mut stream = link.open(&head(1), Bytes::from(vec![7; 200_000])).unwrap();
    let mut request = work(&mut node).await;
    let body = soon(request.body(1_000_000)).await.unwrap();
    let mut responder = request.accept().unwrap();
    soon(responder.send(body)).await.unwrap();
    responder.finish();
    soon(stream.accepted()).await.unwrap();
    let mut count = 0;
    while let Some(chunk) = soon(stream.chunk()).await {
        count += chunk.unwrap().len();
    }
    assert_eq!(count, 200_000);
}

#[tokio::test]
async fn plain_http_stays_on_the_loopback() {
    // The address of this machine as others see it; no packet is sent.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let outside = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr());
    let Ok(outside) = outside else { return };
    if outside.ip().is_loopback() {
        return;
    }
    let gateway = Gateway::start_on("0.0.0.0:0", Clock::system(), LinkConfig::default(), None).await;
    let url = format!("http://{}:{}", outside.ip(), gateway.address.port());
    match dial_error(&config(&url, key(1), Clock::system(), None)).await {
        DialError::Transport(TransportError::PlainNotLoopback { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_is_no_gateway_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut tcp, _)) = listener.accept().await {
            let _ = tcp.read(&mut [0; 4096]).await;
            let _ = tcp.write_all(b"220 mail.example ESMTP\r\n").await;
        }
    });
    match dial_error(&config(&format!("http://{address}"), key(1), Clock::system(), None)).await {
        error @ DialError::Protocol { .. } => assert!(error.to_string().contains(&address.to_string())),
        other => panic!("{other:?}"),
    }
}
