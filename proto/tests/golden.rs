//! The bytes of every message, written down: a change here is a change of the protocol's version.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use wherry_proto::*;

fn operator() -> SecretKey {
    SecretKey::from_seed([1; 32])
}

fn node() -> SecretKey {
    SecretKey::from_seed([2; 32])
}

fn certificate() -> Certificate {
    Certificate::sign(&operator(), node().node(), Roles::MEMBER | Roles::RESOLVER, 7, 2_000_000_000)
}

fn record() -> TagRecord {
    let meaning = TagMeaning {
        reference: "r.example/a:1".parse().unwrap(),
        digest: Digest::sha256(b"manifest"),
        media_type: "text/plain".parse().unwrap(),
        size: 8,
        sequence: 300,
        time: 1_700_000_000,
        word: TagWord::Pushed,
    };
    TagRecord::sign(&node(), &certificate(), meaning)
}

fn blob() -> BlobName {
    BlobName { digest: Digest::sha256(b"blob"), size: 4 }
}

fn claim() -> HeldClaim {
    let map = ChunkMap::new(4).unwrap();
    let mut builder = ChainBuilder::new(Algorithm::Sha256, map);
    builder.update(b"blob").unwrap();
    HeldClaim::sign(&node(), &operator().network(), &builder.finish().unwrap())
}

fn attempt() -> Attempt {
    Attempt { signer: node().node(), number: 300 }
}

/// On two states.
fn stream_claim() -> StreamClaim {
    let mut prefix = StatePrefix::new(Algorithm::Sha256, ChunkMap::new(100_000).unwrap());
    for word in [1, 2] {
        assert!(prefix.push(State::Sha256([word; 8])));
    }
    StreamClaim::sign(&node(), &operator().network(), Digest::sha256(b"long"), 300, &prefix)
}

fn pause() -> PauseRecord {
    PauseRecord::sign(&node(), &certificate(), "harbour".parse().unwrap(), true, 300, 1_700_000_000)
}

fn word(pause: Option<PauseRecord>) -> WanWord {
    WanWord { day: 20_000, spent: 70_000, takes: true, gives: false, counts: true, pause }
}

fn lead_question() -> Question {
    Question::Lead { blob: blob(), origin: "r.example".parse().unwrap(), repository: "a/b".parse().unwrap() }
}

fn wanted(platform: Option<&str>) -> WantedImage {
    WantedImage {
        reference: "r.example/a/b:1".parse().unwrap(),
        platform: platform.map(|it| it.parse().unwrap()),
    }
}

fn preloading(state: PreloadState) -> String {
    let preloading = Preloading { here: 300, bytes: 70_000, state };
    frame(Reply { id: 10, answer: Answer::Preloading(Some(preloading)) })
}

fn update<const N: usize>(role: Role, runs: [(u32, u32); N]) -> Response {
    let here = List::first_of(runs.map(|(from, len)| Run { from, len }));
    Response::Update { id: 5, update: Update { role, here } }
}

fn tags_after(after: Option<&str>) -> Question {
    Question::Tags {
        origin: "r.example".parse().unwrap(),
        repository: "a/b".parse().unwrap(),
        after: after.map(|after| after.parse().unwrap()),
    }
}

fn tags<const N: usize>(names: [&str; N], more: bool) -> Answer {
    let names = names.iter().map(|name| name.parse().unwrap());
    Answer::Tags(TagPage { names: List::first_of(names), more })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The frame of a message as digits, once it has gone round.
#[track_caller]
fn frame<M: Message + PartialEq + std::fmt::Debug>(message: M) -> String {
    let frame = encode_frame(&message).unwrap();
    let (prefix, payload) = frame.split_first_chunk().unwrap();
    assert_eq!(payload_len::<M>(*prefix), Ok(payload.len()));
    assert_eq!(decode_payload::<M>(payload), Ok(message));
    hex(&frame)
}

#[test]
fn every_message_has_the_bytes_that_are_written_down() {
    let hello = Hello {
        version: Version::OURS,
        certificate: certificate(),
        site: "harbour".parse().unwrap(),
        ports: Ports { tcp: 4050, quic: 4050, bulk: 4051 },
        life: 1 << 63,
    };
    let want = Question::Want(List::first_of([blob().digest, Digest::of(Algorithm::Sha512, b"blob")]));
    let provide = Provide {
        blobs: List::first_of([blob().digest]),
        addresses: List::first_of([List::first_of([4, 192, 0, 2, 1, 6, 0x0f, 0xd2])]),
    };
    let holdings = Answer::Want(List::first_of([Holding::No, Holding::Held { size: 1 << 40 }]));
    let arriving = |role| {
        frame(Reply { id: 1, answer: Answer::Want(List::first_of([Holding::Arriving { size: 5, role }])) })
    };
    let preload = |answer| frame(Reply { id: 9, answer: Answer::Preload(answer) });
    let lead = |lead| frame(Reply { id: 6, answer: Answer::Lead(lead) });
    let refuse = |why| lead(Lead::Refuse(why));
    let following = |stream| Role::Following { stream, known: 2, may_lead: true, led_slowly: false };
    let slowly = Role::Following { stream: None, known: 2, may_lead: false, led_slowly: true };
    let states = Response::States { id: 6, claim: stream_claim(), certificate: certificate(), len: 2 * 32 };
    let other_size = Refusal::OtherSize { held: 5 };
    let found = [
        ("hello", frame(hello)),
        ("certificate", frame(certificate())),
        ("certificate-text", certificate().to_string()),
        ("tag-record", frame(record())),
        ("ask-ping", frame(Ask { id: 1, question: Question::Ping })),
        ("ask-want", frame(Ask { id: 70_000, question: want })),
        ("ask-tag", frame(Ask { id: 2, question: Question::Tag("a:1".parse().unwrap()) })),
        ("ask-tags", frame(Ask { id: 3, question: tags_after(None) })),
        ("ask-tags-after", frame(Ask { id: 4, question: tags_after(Some("3.19")) })),
        ("ask-lead", frame(Ask { id: 6, question: lead_question() })),
        ("ask-resolve", frame(Ask { id: 7, question: Question::Resolve("a:1".parse().unwrap()) })),
        ("reply-pong", frame(Reply { id: 1, answer: Answer::Pong })),
        ("reply-want", frame(Reply { id: 70_000, answer: holdings })),
        ("reply-tag-unknown", frame(Reply { id: 2, answer: Answer::Tag(None) })),
        ("reply-tag", frame(Reply { id: 2, answer: Answer::Tag(Some(record())) })),
        ("reply-resolved-unknown", frame(Reply { id: 2, answer: Answer::Resolved(None) })),
        (
            "reply-resolved",
            frame(Reply {
                id: 2,
                answer: Answer::Resolved(Some(Resolution {
                    record: record(),
                    manifest: Some(List::first_of(*b"{}")),
                })),
            }),
        ),
        ("reply-tags-none", frame(Reply { id: 3, answer: tags([], false) })),
        ("reply-tags", frame(Reply { id: 4, answer: tags(["3.20", "latest"], true) })),
        ("reply-want-arriving", arriving(following(None))),
        ("reply-want-arriving-follows", arriving(following(Some(attempt())))),
        ("reply-want-arriving-leads", arriving(Role::Leading { attempt: 7, known: 2 })),
        ("reply-lead-have", lead(Lead::Have)),
        ("reply-lead-leading", lead(Lead::Leading)),
        ("reply-lead-no-route", refuse(LeadRefusal::NoRoute)),
        ("reply-lead-no-credentials", refuse(LeadRefusal::NoCredentials)),
        ("reply-lead-no-space", refuse(LeadRefusal::NoSpace)),
        ("reply-lead-budget", refuse(LeadRefusal::Budget)),
        ("reply-lead-not-for-you", refuse(LeadRefusal::NotForYou)),
        ("request-chain", frame(Request::Chain { id: 1, blob: blob(), known: None, spares: true })),
        (
            "request-chain-known",
            frame(Request::Chain { id: 1, blob: blob(), known: Some(Digest::sha256(b"")), spares: false }),
        ),
        ("request-chunk", frame(Request::Chunk { id: 2, blob: blob(), index: 3 })),
        ("request-cancel", frame(Request::Cancel { id: 2 })),
        ("request-follow", frame(Request::Follow { id: 5, blob: blob() })),
        ("request-states", frame(Request::States { id: 6, blob: blob(), attempt: attempt(), from: 7 })),
        ("request-unlinked", frame(Request::Unlinked { blob: blob(), index: 3 })),
        (
            "request-claimed-states",
            frame(Request::ClaimedStates { id: 9, blob: blob(), states: Digest::sha256(b"") }),
        ),
        ("response-chunk", frame(Response::Chunk { id: 2, len: MAX_CHUNK_LEN })),
        ("response-chain", frame(Response::Chain { id: 1, claim: claim(), len: 0 })),
        ("response-busy", frame(Response::Busy { id: 2 })),
        ("response-not-held", frame(Response::NotHeld { id: 2 })),
        ("response-other-size", frame(Response::Refused { id: 2, reason: other_size })),
        ("response-no-such-chunk", frame(Response::Refused { id: 2, reason: Refusal::NoSuchChunk })),
        ("response-unreadable", frame(Response::Refused { id: 2, reason: Refusal::Unreadable })),
        ("response-too-many-followed", frame(Response::Refused { id: 2, reason: Refusal::TooManyFollowed })),
        ("response-gives-nothing", frame(Response::Refused { id: 2, reason: Refusal::GivesNothing })),
        ("response-free", frame(Response::Free)),
        ("response-update-held", frame(update(Role::Held, []))),
        (
            "response-update-leading",
            frame(update(Role::Leading { attempt: 300, known: 2 }, [(0, 2), (70_000, 1)])),
        ),
        ("response-update-candidate", frame(update(Role::Candidate { attempt: 300, known: 2 }, []))),
        ("response-update-following", frame(update(following(Some(attempt())), [(1, 1)]))),
        ("response-update-following-slowly", frame(update(slowly, []))),
        ("response-update-following-none", frame(update(following(None), []))),
        ("response-update-gone", frame(update(Role::Gone, []))),
        ("response-states", frame(states)),
        ("response-elsewhere", frame(Response::Elsewhere { id: 2 })),
        ("response-not-here", frame(Response::NotHere { id: 2 })),
        ("response-claimed-states", frame(Response::ClaimedStates { id: 9, len: 2 * 32 })),
        ("pause-record", frame(pause())),
        ("ask-wan", frame(Ask { id: 8, question: Question::Wan(word(Some(pause()))) })),
        ("reply-wan", frame(Reply { id: 8, answer: Answer::Wan(Some(word(None))) })),
        ("reply-wan-none", frame(Reply { id: 8, answer: Answer::Wan(None) })),
        ("ask-preload", frame(Ask { id: 9, question: Question::Preload(wanted(None)) })),
        (
            "ask-preload-platform",
            frame(Ask { id: 9, question: Question::Preload(wanted(Some("linux/arm64"))) }),
        ),
        ("ask-preloading", frame(Ask { id: 10, question: Question::Preloading(wanted(None)) })),
        ("ask-moved", frame(Ask { id: 11, question: Question::Moved(record()) })),
        ("reply-moved", frame(Reply { id: 11, answer: Answer::Moved(true) })),
        ("ask-provide", frame(Ask { id: 12, question: Question::Provide(provide) })),
        ("reply-provided", frame(Reply { id: 12, answer: Answer::Provided })),
        ("reply-preload", preload(Ok(()))),
        ("reply-preload-busy", preload(Err(PreloadRefusal::Busy))),
        ("reply-preload-name", preload(Err(PreloadRefusal::Name))),
        ("reply-preload-stopping", preload(Err(PreloadRefusal::Stopping))),
        ("reply-preloading-none", frame(Reply { id: 10, answer: Answer::Preloading(None) })),
        ("reply-preloading-running", preloading(PreloadState::Running)),
        ("reply-preloading-waiting", preloading(PreloadState::Waiting("a pause".parse().unwrap()))),
        ("reply-preloading-done", preloading(PreloadState::Done)),
        ("reply-preloading-failed", preloading(PreloadState::Failed("no space".parse().unwrap()))),
    ];
    let found: String = found.iter().map(|(name, bytes)| format!("{name} {bytes}\n")).collect();
    assert_eq!(found, include_str!("golden.txt"), "as it is now:\n{found}");
}
