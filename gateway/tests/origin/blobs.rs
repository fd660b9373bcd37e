//! Blobs from origins that do not do as they should.

use std::time::Duration;

use wherry_gateway::origin::{OriginError, Origins};
use wherry_proto::Digest;

use crate::script::{Reply, Script};
use crate::{drain, noise, repository, settings};

const SIZE: usize = 300_000;

fn bytes() -> Vec<u8> {
    noise(SIZE)
}

fn digest() -> Digest {
    Digest::sha256(&bytes())
}

#[tokio::test]
async fn an_origin_that_ignores_ranges_still_gives_the_right_bytes() {
    let origin = Script::start(|_, _| Reply::new(200, &[], bytes())).await;
    let origins = Origins::new(settings(&[&origin.host])).unwrap();
    for from in [0, 1, 123_456, SIZE as u64] {
        let blob = origins.blob(&origin.host, &repository(), &digest(), from).await.unwrap();
        assert_eq!((blob.from(), blob.total()), (from, Some(SIZE as u64)));
        let (got, end) = drain(blob).await;
        end.unwrap();
        assert!(got == bytes()[from as usize..], "from {from}");
    }
    assert_eq!(origin.seen()[1].header("range"), Some("bytes=1-"));
    assert!(origin.seen().iter().all(|request| request.header("accept-encoding") == Some("identity")));
}

#[tokio::test]
async fn an_origin_that_sends_too_little_says_where_to_go_on_and_going_on_works() {
    let origin = Script::start(|number, _| match number {
        0 => {
            let length = SIZE.to_string();
            Reply::Close(Reply::raw(200, &[("Content-Length", &length)], &bytes()[..100_000]))
        }
        _ => {
            let range = format!("bytes 100000-{}/{SIZE}", SIZE - 1);
            Reply::new(206, &[("Content-Range", &range)], &bytes()[100_000..])
        }
    })
    .await;
    let origins = Origins::new(settings(&[&origin.host])).unwrap();
    let blob = origins.blob(&origin.host, &repository(), &digest(), 0).await.unwrap();
    let (mut got, end) = drain(blob).await;
    let Err(OriginError::Interrupted { received, total, .. }) = end else { panic!("{end:?}") };
    assert_eq!((received, total), (100_000, Some(SIZE as u64)));
    let (rest, end) =
        drain(origins.blob(&origin.host, &repository(), &digest(), received).await.unwrap()).await;
    end.unwrap();
    got.extend(rest);
    assert!(got == bytes());
}

#[tokio::test]
async fn a_part_that_ends_before_the_blob_is_an_interruption() {
    let origin = Script::start(|_, _| {
        let range = format!("bytes 10-19/{SIZE}");
        Reply::new(206, &[("Content-Range", &range)], &bytes()[10..20])
    })
    .await;
    let origins = Origins::new(settings(&[&origin.host])).unwrap();
    let (got, end) = drain(origins.blob(&origin.host, &repository(), &digest(), 10).await.unwrap()).await;
    assert_eq!(got, bytes()[10..20]);
    assert!(matches!(end, Err(OriginError::Interrupted { received: 20, .. })), "{end:?}");
}

#[tokio::test]
async fn of_a_part_no_byte_behind_its_end_is_asked_for_nor_taken() {
    let range = |end: usize| format!("bytes 10-{}/{SIZE}", end - 1);
    let origin = Script::start(move |number, _| match number {
        0 => Reply::new(206, &[("Content-Range", &range(200_000))], &bytes()[10..200_000]),
        // One that ignores where it ends, one that ignores ranges, and one that sends too little.
        1 => Reply::new(206, &[("Content-Range", &range(SIZE))], &bytes()[10..]),
        2 => Reply::new(200, &[], bytes()),
        _ => Reply::new(206, &[("Content-Range", &range(100))], &bytes()[10..100]),
    })
    .await;
    let origins = Origins::new(settings(&[&origin.host])).unwrap();
    for number in 0..4 {
        let part = origins.blob_part(&origin.host, &repository(), &digest(), 10..200_000).await.unwrap();
        let (got, end) = drain(part).await;
        let until = if number < 3 { 200_000 } else { 100 };
        assert!(got == bytes()[10..until], "{number}: {} bytes", got.len());
        assert_eq!(end.is_ok(), number < 3, "{number}: {end:?}");
    }
    assert!(origin.seen().iter().all(|request| request.header("range") == Some("bytes=10-199999")));
}

#[tokio::test]
async fn an_origin_that_falls_silent_is_given_up() {
    let origin = Script::start(|_, _| {
        let length = SIZE.to_string();
        Reply::Hang(Reply::raw(200, &[("Content-Length", &length)], &bytes()[..1000]))
    })
    .await;
    let mut settings = settings(&[&origin.host]);
    settings.stall_timeout = Duration::from_millis(200);
    let origins = Origins::new(settings).unwrap();
    let (got, end) = drain(origins.blob(&origin.host, &repository(), &digest(), 0).await.unwrap()).await;
    assert_eq!(got.len(), 1000);
    assert!(matches!(end, Err(OriginError::Interrupted { received: 1000, .. })), "{end:?}");
}

#[tokio::test]
async fn an_origin_that_sends_more_than_it_announced_is_wrong() {
    let origin = Script::start(|_, _| {
        let body = format!("{:x}\r\n{}\r\n0\r\n\r\n", 30, "x".repeat(30));
        let headers = [("Content-Range", "bytes 10-19/20"), ("Transfer-Encoding", "chunked")];
        Reply::Keep(Reply::raw(206, &headers, body))
    })
    .await;
    let origins = Origins::new(settings(&[&origin.host])).unwrap();
    let (got, end) = drain(origins.blob(&origin.host, &repository(), &digest(), 10).await.unwrap()).await;
    assert!(got.is_empty());
    assert!(matches!(end, Err(OriginError::BadAnswer { .. })), "{end:?}");
}

#[tokio::test]
async fn answers_that_are_another_part_or_another_form_are_wrong() {
    for (status, headers) in [
        (206, vec![("Content-Range", "bytes 0-99/300000")]),
        (206, vec![("Content-Range", "bytes 11-110/300000")]),
        (206, vec![("Content-Range", "bytes 10-110/300000")]),
        (206, vec![("Content-Type", "multipart/byteranges; boundary=x")]),
        (206, vec![]),
        (200, vec![("Content-Encoding", "gzip")]),
        (416, vec![("Content-Range", "bytes */5")]),
        (204, vec![]),
        (400, vec![]),
    ] {
        let shown = format!("{status} {headers:?}");
        let origin = Script::start(move |_, _| {
            let body = if status == 204 { &[][..] } else { &bytes()[..100] };
            Reply::new(status, &headers, body)
        })
        .await;
        let origins = Origins::new(settings(&[&origin.host])).unwrap();
        let error = origins.blob(&origin.host, &repository(), &digest(), 10).await.unwrap_err();
        assert!(matches!(error, OriginError::BadAnswer { .. }), "{shown}: {error}");
        assert_eq!(origin.seen().len(), 1, "{shown} is not worth a second attempt");
    }
}

#[tokio::test]
async fn a_blob_without_an_announced_length_ends_where_it_ends() {
    let origin =
        Script::start(|_, _| Reply::Close(Reply::raw(200, &[("Connection", "close")], bytes()))).await;
    let origins = Origins::new(settings(&[&origin.host])).unwrap();
    let blob = origins.blob(&origin.host, &repository(), &digest(), 0).await.unwrap();
    assert_eq!(blob.total(), None);
    let (got, end) = drain(blob).await;
    end.unwrap();
    assert!(got == bytes());
}
