use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use wherry_proto::SecretKey;

use super::*;
use crate::limits::{Limit, Limited, WanStatus};

struct Harbour(Metrics, State);

impl Report for Harbour {
    fn state(&self) -> State {
        self.1
    }

    async fn status(&self) -> NodeStatus {
        NodeStatus {
            version: "0.1.0".to_owned(),
            state: self.state(),
            peer_id: SecretKey::from_seed([1; 32]).node(),
            network: SecretKey::from_seed([2; 32]).network(),
            site: "a \"quoted\" site".to_owned(),
            default_origin: "docker.io".to_owned(),
            uptime_seconds: 5,
            addresses: Addresses {
                gateway: ([127, 0, 0, 1], 1).into(),
                status: ([127, 0, 0, 1], 2).into(),
                peers: ([127, 0, 0, 1], 3).into(),
                bulk: ([127, 0, 0, 1], 4).into(),
                control: "/c".into(),
                bootstrap: Vec::new(),
            },
            store: StoreStatus { blobs: 3, bytes: 4096, budget: Some(1 << 30), ..StoreStatus::default() },
            images: 1,
            peers: 2,
            refused: Vec::new(),
            unreached: Vec::new(),
            joined: None,
            damaged: Vec::new(),
            transfers: Vec::new(),
            wan: WanStatus {
                limited: Some(Limited { by: Limit::Budget, since: 5, until: Some(6) }),
                budget: Some(100),
                spent: 101,
                ..WanStatus::default()
            },
            remaining: vec![Remaining { origin: "docker.io".to_owned(), manifests: 76 }],
            left_alone: Vec::new(),
            traffic: self.0.traffic(),
            errors: self.0.errors(),
        }
    }
}

struct Pages {
    address: std::net::SocketAddr,
    metrics: Metrics,
    shutdown: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

async fn start(state: State) -> Pages {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, metrics, shutdown) =
        (listener.local_addr().unwrap(), Metrics::default(), CancellationToken::new());
    let report = Arc::new(Harbour(metrics.clone(), state));
    let server = tokio::spawn(serve(listener, report, metrics.clone(), shutdown.clone()));
    Pages { address, metrics, shutdown, server }
}

async fn ask(pages: &Pages, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(pages.address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn a_node_that_serves_is_healthy_and_one_that_stops_is_not() {
    assert_eq!(ask(&start(State::Ready).await, "GET", "/healthz").await.0, 200);
    assert_eq!(ask(&start(State::Stopping).await, "GET", "/healthz").await.0, 503);
}

#[tokio::test]
async fn the_status_page_is_the_whole_status_with_what_was_counted() {
    let pages = start(State::Ready).await;
    pages.metrics.from_peers.inc_by(7);
    pages.metrics.clone().from_origin.inc_by(8);
    pages.metrics.failed(ErrorKind::Origin);
    let (code, head, body) = ask(&pages, "GET", "/status").await;
    assert_eq!(code, 200);
    assert!(head.contains("application/json") && head.contains("no-store"), "{head}");
    let status: NodeStatus = serde_json::from_str(&body).unwrap();
    assert_eq!(status.traffic, Traffic { from_peers: 7, from_origin: 8, to_clients: 0, to_peers: 0 });
    assert_eq!(status.errors, ErrorCounts { origin: 1, ..ErrorCounts::default() });
}

#[tokio::test]
async fn prometheus_gets_every_counter_from_the_start_and_nothing_unescaped() {
    let pages = start(State::Ready).await;
    pages.metrics.from_peers.inc_by(7);
    let (code, head, body) = ask(&pages, "GET", "/metrics").await;
    assert_eq!(code, 200);
    assert!(head.contains("application/openmetrics-text"), "{head}");
    for line in [
        "wherry_received_bytes_total{side=\"peers\"} 7\n",
        "wherry_received_bytes_total{side=\"origin\"} 0\n",
        "wherry_sent_bytes_total{side=\"clients\"} 0\n",
        "wherry_sent_bytes_total{side=\"peers\"} 0\n",
        "wherry_errors_total{kind=\"store\"} 0\n",
        "wherry_store_bytes 4096\n",
        "wherry_store_budget_bytes 1073741824\n",
        "wherry_peers 2\n",
        "wherry_wan_received_bytes_total 0\n",
        "wherry_wan_sent_bytes_total 0\n",
        "wherry_wan_limited{by=\"budget\"} 1\n",
        "wherry_wan_limited{by=\"pause\"} 0\n",
        "wherry_wan_spent_bytes 101\n",
        "wherry_wan_budget_bytes 100\n",
        "site=\"a \\\"quoted\\\" site\"",
    ] {
        assert!(body.contains(line), "{line}\n{body}");
    }
    assert!(body.ends_with("# EOF\n"), "{body}");
}

#[tokio::test]
async fn nothing_can_be_changed_and_nothing_is_loaded_from_elsewhere() {
    let pages = start(State::Ready).await;
    for path in ["/", "/healthz", "/status", "/metrics"] {
        assert_eq!(ask(&pages, "POST", path).await.0, 405, "{path}");
    }
    assert_eq!(ask(&pages, "GET", "/v1/images").await.0, 404);
    let (_, head, body) = ask(&pages, "GET", "/").await;
    assert!(head.contains("default-src 'none'"), "{head}");
    assert!(!body.contains("//"), "{body}");
}

#[tokio::test]
async fn the_pages_end_when_the_node_does() {
    let pages = start(State::Ready).await;
    // A client that has sent half a request does not hold the node up.
    let mut idle = TcpStream::connect(pages.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    ask(&pages, "GET", "/healthz").await;
    pages.shutdown.cancel();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(5), pages.server).await;
    ended.unwrap().unwrap();
}
