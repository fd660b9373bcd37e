//! A small HTTP/1.1 client of the lab's own: blocking, one connection a request, and blunt enough to send what no
//! well-behaved client would.

use std::io::{BufRead as _, BufReader, Read, Write as _, copy};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// How long a server may leave a request without a byte before the lab calls it hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// The most bytes of one header line that are read.
const LINE_BOUND: u64 = 64 * 1024;

/// The head of an answer whose body is read through [`Read`].
///
/// A body that ends before its Content-Length is an error of kind `UnexpectedEof`, not an end.
pub struct Download {
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Body,
    stream: BufReader<TcpStream>,
}

enum Body {
    Length(u64),
    Chunked(u64),
    UntilClose,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// A request in the making.
pub struct Request<'a> {
    addr: SocketAddr,
    method: &'a str,
    path: &'a str,
    headers: Vec<(&'a str, String)>,
    body: Option<(u64, &'a mut dyn Read)>,
    patience: Duration,
}

impl<'a> Request<'a> {
    /// A request without headers of its own.
    pub fn new(addr: SocketAddr, method: &'a str, path: &'a str) -> Self {
        Self { addr, method, path, headers: Vec::new(), body: None, patience: PATIENCE }
    }

    /// Adds a header.
    pub fn header(mut self, name: &'a str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sends a body of exactly this many bytes.
    pub fn body(mut self, length: u64, bytes: &'a mut dyn Read) -> Self {
        self.body = Some((length, bytes));
        self
    }

    /// Leaves the server this long without a byte, where more or less than a minute is meant.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends the request and reads the head of the answer.
    ///
    /// # Errors
    /// When the server cannot be reached, hangs, or does not speak HTTP.
    pub fn open(self) -> Result<Download> {
        let what = format!("{} http://{}{}", self.method, self.addr, self.path);
        self.send().with_context(|| what)
    }

    fn send(self) -> Result<Download> {
        let mut stream = TcpStream::connect(self.addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", self.method, self.path, self.addr);
        head += "Connection: close\r\n";
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match &self.body {
            Some((length, _)) => head += &format!("Content-Length: {length}\r\n"),
            None if self.method == "GET" || self.method == "HEAD" => {}
            None => head += "Content-Length: 0\r\n",
        }
        head += "\r\n";
        stream.write_all(head.as_bytes())?;
        if let Some((length, body)) = self.body {
            let sent = copy(&mut body.take(length), &mut stream)?;
            anyhow::ensure!(sent == length, "the body ended after {sent} of {length} bytes");
        }
        Download::read_head(BufReader::with_capacity(256 * 1024, stream), self.method == "HEAD")
    }

    /// Sends the request and reads the whole answer.
    ///
    /// # Errors
    /// As [`Request::open`], and when the body ends early.
    pub fn send_and_read(self) -> Result<Answer> {
        let what = format!("{} http://{}{}", self.method, self.addr, self.path);
        let mut download = self.open()?;
        let mut body = Vec::new();
        download.read_to_end(&mut body).with_context(|| what)?;
        Ok(Answer { status: download.status, headers: download.headers, body })
    }
}

/// GETs a path and reads the whole answer.
///
/// # Errors
/// As [`Request::send_and_read`].
pub fn get(addr: SocketAddr, path: &str) -> Result<Answer> {
    Request::new(addr, "GET", path).send_and_read()
}

/// Sends bytes as they are and gives what comes back until the server closes.
///
/// # Errors
/// When the server cannot be reached or hangs.
pub fn raw(addr: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // A server that refuses without reading everything may reset; what it said first counts.
        Err(error) if answer.is_empty() => Err(error.into()),
        _ => Ok(answer),
    }
}

fn header<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

impl Answer {
    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The body as text, for messages.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The code of the first error of a body as the distribution specification shapes it.
    pub fn error_code(&self) -> Option<String> {
        let body: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(body.get("errors")?.get(0)?.get("code")?.as_str()?.to_owned())
    }
}

impl Download {
    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    fn read_head(mut stream: BufReader<TcpStream>, no_body: bool) -> Result<Self> {
        let status_line = read_line(&mut stream)?;
        let mut words = status_line.split(' ');
        let (version, status) = (words.next(), words.next());
        if !version.is_some_and(|version| version.starts_with("HTTP/1.")) {
            bail!("not an HTTP/1 status line: {status_line:?}");
        }
        let status: u16 = status.context("no status")?.parse()?;
        let mut headers = Vec::new();
        loop {
            let line = read_line(&mut stream)?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').with_context(|| format!("header {line:?}"))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let body = if no_body || matches!(status, 204 | 304) {
            Body::Length(0)
        } else if header(&headers, "Transfer-Encoding").is_some_and(|value| value.contains("chunked")) {
            Body::Chunked(0)
        } else if let Some(length) = header(&headers, "Content-Length") {
            Body::Length(length.parse()?)
        } else {
            Body::UntilClose
        };
        Ok(Self { status, headers, body, stream })
    }
}

fn read_line(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut line = Vec::new();
    stream.take(LINE_BOUND).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the answer ended in its head"));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

fn early_end(left: u64) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, format!("the body ended {left} bytes early"))
}

impl Read for Download {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let left = match &mut self.body {
            Body::UntilClose => return self.stream.read(into),
            Body::Length(left) => left,
            Body::Chunked(left) => {
                if *left == 0 {
                    let line = read_line(&mut self.stream)?;
                    let digits = line.split(';').next().unwrap_or_default();
                    let size = u64::from_str_radix(digits, 16).map_err(std::io::Error::other)?;
                    if size == 0 {
                        self.body = Body::Length(0);
                        return Ok(0);
                    }
                    *left = size;
                }
                left
            }
        };
        let most = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.stream.read(&mut into[..most])?;
        if read == 0 {
            return Err(early_end(*left));
        }
        *left -= read as u64;
        if *left == 0 && matches!(self.body, Body::Chunked(_)) {
            read_line(&mut self.stream)?;
        }
        Ok(read)
    }
}
