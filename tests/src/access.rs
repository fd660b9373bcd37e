//! What an origin was asked for, read from docker-registry's access log.

use wherry_proto::Digest;

/// One answered request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// GET, HEAD, PUT …
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The status that was sent.
    pub status: u16,
    /// Bytes of body that were sent, also when the client left early.
    pub bytes: u64,
}

/// All requests in a log in the combined log format; other lines are skipped.
pub fn parse(log: &str) -> Vec<Access> {
    log.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Access> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut request = request.split(' ');
    let (method, path) = (request.next()?, request.next()?);
    let mut numbers = rest.split('"').next()?.split_whitespace();
    let (status, bytes) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    Some(Access { method: method.into(), path: path.into(), status, bytes })
}

/// Questions that tests put to a log.
pub trait Accesses {
    /// How often this blob's bytes were sent, wholly or in part.
    fn reads_of(&self, blob: &Digest) -> usize;
    /// How many of this blob's bytes were sent, all requests together.
    fn bytes_of(&self, blob: &Digest) -> u64;
    /// How many manifests were sent.
    fn manifest_reads(&self) -> usize;
}

impl Accesses for [Access] {
    fn reads_of(&self, blob: &Digest) -> usize {
        blob_reads(self, blob).count()
    }

    fn bytes_of(&self, blob: &Digest) -> u64 {
        blob_reads(self, blob).map(|access| access.bytes).sum()
    }

    fn manifest_reads(&self) -> usize {
        let sent = |access: &&Access| access.method == "GET" && access.status == 200;
        self.iter().filter(sent).filter(|access| access.path.contains("/manifests/")).count()
    }
}

fn blob_reads<'a>(log: &'a [Access], blob: &Digest) -> impl Iterator<Item = &'a Access> {
    let end = format!("/blobs/{blob}");
    log.iter().filter(move |access| {
        let path = access.path.split('?').next().unwrap_or_default();
        access.method == "GET" && matches!(access.status, 200 | 206) && path.ends_with(&end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_a_blob_and_their_bytes_are_counted_and_nothing_else() {
        let blob = Digest::sha256(b"layer");
        let line = |method: &str, status: u16, bytes: u64| {
            format!(
                "127.0.0.1 - - [23/Nov/2026:05:27:05 +0000] \"{method} /v2/a/b/blobs/{blob} HTTP/1.1\" {status} \
                 {bytes} \"\" \"docker/20 (linux \\\"x\\\")\"\n"
            )
        };
        let log =
            line("GET", 200, 100) + &line("GET", 206, 40) + &line("HEAD", 200, 0) + &line("GET", 404, 77);
        let log = log + "time=\"x\" level=info msg=\"GET /v2/a/b/blobs\"\n";
        let accesses = parse(&log);
        assert_eq!(accesses.len(), 4);
        assert_eq!((accesses.reads_of(&blob), accesses.bytes_of(&blob)), (2, 140));
        assert_eq!(accesses.reads_of(&Digest::sha256(b"other")), 0);
    }
}
