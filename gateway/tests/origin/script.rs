//! A server that answers each request with exactly the bytes that a test wants.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wherry_gateway::Host;

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is sent for a request, and what happens then.
pub(crate) enum Reply {
    /// These bytes, and the connection goes on.
    Keep(Vec<u8>),
    /// These bytes, and the connection ends.
    Close(Vec<u8>),
    /// These bytes, and nothing more while the client waits.
    Hang(Vec<u8>),
}

impl Reply {
    /// A well-formed answer.
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let length = body.as_ref().len().to_string();
        let mut with_length = headers.to_vec();
        with_length.push(("Content-Length", &length));
        Self::Keep(Self::raw(status, &with_length, body))
    }

    /// An answer with these headers alone.
    pub(crate) fn raw(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {status} X\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(body.as_ref());
        bytes
    }
}

pub(crate) struct Script {
    pub(crate) address: SocketAddr,
    /// The server as an origin.
    pub(crate) host: Host,
    pub(crate) requests: Arc<Mutex<Vec<Request>>>,
}

impl Script {
    /// A server that answers by `answer`, which is also given the number of the request, counted from 0.
    pub(crate) async fn start(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (all, answer) = (Arc::clone(&requests), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, Arc::clone(&all), Arc::clone(&answer)));
            }
        });
        Self { address, host: address.to_string().parse().unwrap(), requests }
    }

    /// The same server by another name.
    pub(crate) fn localhost(&self) -> Host {
        format!("localhost:{}", self.address.port()).parse().unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

async fn converse(
    mut stream: TcpStream,
    all: Arc<Mutex<Vec<Request>>>,
    answer: Arc<impl Fn(usize, &Request) -> Reply>,
) {
    while let Some(request) = read_request(&mut stream).await {
        let number = {
            let mut all = all.lock().unwrap();
            all.push(request.clone());
            all.len() - 1
        };
        let (bytes, end) = match answer(number, &request) {
            Reply::Keep(bytes) => (bytes, 0),
            Reply::Close(bytes) => (bytes, 1),
            Reply::Hang(bytes) => (bytes, 2),
        };
        // The client may have heard enough.
        if stream.write_all(&bytes).await.is_err() || end == 1 {
            return;
        }
        if end == 2 {
            let _ = stream.read(&mut [0]).await;
            return;
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap().split(' ').map(str::to_owned);
    let headers: BTreeMap<_, _> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |text| text.parse().unwrap());
    while bytes.len() < end + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    let body = String::from_utf8(bytes[end + 4..end + 4 + length].to_vec()).unwrap();
    Some(Request { method: first.next().unwrap(), target: first.next().unwrap(), headers, body })
}
