//! An HTTP client that shows what really came over the wire, and how it ended.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long any single step may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    buffered: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As long as announced.
    Complete,
    /// Shorter, and then a FIN.
    Short,
    /// Shorter, and then an RST.
    Reset,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), buffered: Vec::new() }
    }

    pub(crate) async fn send(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) {
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: gateway\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        self.stream.write_all(head.as_bytes()).await.unwrap();
    }

    /// The status and headers of an answer; `body` is empty as yet.
    pub(crate) async fn head(&mut self) -> Answer {
        let end = loop {
            if let Some(at) = self.buffered.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(self.more().await.unwrap() > 0, "closed before an answer: {:?}", self.buffered);
        };
        let head = String::from_utf8(self.buffered.drain(..end).collect()).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Answer { status, headers, body: Vec::new(), end: End::Complete }
    }

    /// Exactly `n` bytes of a body.
    pub(crate) async fn bytes(&mut self, n: usize) -> Vec<u8> {
        while self.buffered.len() < n {
            assert!(self.more().await.unwrap() > 0, "closed after {} of {n} bytes", self.buffered.len());
        }
        self.buffered.drain(..n).collect()
    }

    /// The rest of an answer whose head was read.
    pub(crate) async fn body(&mut self, mut answer: Answer) -> Answer {
        let length: usize = answer.header("content-length").unwrap_or("0").parse().unwrap();
        answer.end = loop {
            if self.buffered.len() >= length {
                break End::Complete;
            }
            match self.more().await {
                Ok(0) => break End::Short,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break End::Reset,
                Err(error) => panic!("{error}"),
            }
        };
        let n = self.buffered.len().min(length);
        answer.body = self.buffered.drain(..n).collect();
        answer
    }

    pub(crate) async fn ask(&mut self, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(method, target, headers).await;
        let answer = self.head().await;
        if method == "HEAD" || answer.status == 304 { answer } else { self.body(answer).await }
    }

    /// How the connection ends if nothing more is asked.
    pub(crate) async fn closed(&mut self) -> io::Result<()> {
        loop {
            match self.more().await {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn more(&mut self) -> io::Result<usize> {
        let read = self.stream.read_buf(&mut self.buffered);
        tokio::time::timeout(PATIENCE, read).await.expect("nothing came for too long")
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The code of a specification-shaped error.
    pub(crate) fn code(&self) -> String {
        let body = self.json();
        let errors = body["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1);
        assert!(!errors[0]["message"].as_str().unwrap().is_empty());
        errors[0]["code"].as_str().unwrap().to_owned()
    }
}

/// One request on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
    Client::connect(address).await.ask(method, target, headers).await
}
