//! What holds for every message and for any bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use wherry_proto::*;

fn key() -> SecretKey {
    SecretKey::from_seed([3; 32])
}

fn digest() -> impl Strategy<Value = Digest> {
    (any::<[u8; 8]>(), any::<bool>()).prop_map(|(bytes, long)| {
        Digest::of(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, &bytes)
    })
}

fn blob() -> impl Strategy<Value = BlobName> {
    (digest(), any::<u64>()).prop_map(|(digest, size)| BlobName { digest, size })
}

fn record() -> impl Strategy<Value = TagRecord> {
    (digest(), "[a-z./:é]{0,320}", any::<[u64; 3]>(), certificate()).prop_map(
        |(digest, reference, [size, sequence, time], certificate)| {
            let media_type = "m".repeat(MAX_MEDIA_TYPE_LEN).parse().unwrap();
            let meaning = TagMeaning {
                reference: reference.parse().unwrap(),
                digest,
                media_type,
                size,
                sequence,
                time,
                word: TagWord::Resolved,
            };
            TagRecord::sign(&key(), &certificate, meaning)
        },
    )
}

fn certificate() -> impl Strategy<Value = Certificate> {
    any::<(u32, u32, u64)>().prop_map(|(roles, epoch, expires)| {
        Certificate::sign(&key(), key().node(), Roles::from_bits(roles), epoch, expires)
    })
}

fn tag_name() -> impl Strategy<Value = TagName> {
    "[a-zA-Z0-9._-]{0,128}".prop_map(|name| name.parse().unwrap())
}

fn question() -> impl Strategy<Value = Question> {
    prop_oneof![
        Just(Question::Ping),
        prop::collection::vec(digest(), 0..=MAX_WANT).prop_map(|d| Question::Want(List::first_of(d))),
        "[ -~]{0,640}".prop_map(|text| Question::Tag(text.parse().unwrap())),
        ("[a-z.:]{0,255}", "[a-z/]{0,255}", prop::option::of(tag_name())).prop_map(
            |(origin, repository, after)| Question::Tags {
                origin: origin.parse().unwrap(),
                repository: repository.parse().unwrap(),
                after,
            }
        ),
        (blob(), "[a-z.:]{0,255}", "[a-z/]{0,255}").prop_map(|(blob, origin, repository)| Question::Lead {
            blob,
            origin: origin.parse().unwrap(),
            repository: repository.parse().unwrap(),
        }),
        word().prop_map(Question::Wan),
        wanted().prop_map(Question::Preload),
        wanted().prop_map(Question::Preloading),
        record().prop_map(Question::Moved),
        provide().prop_map(Question::Provide),
    ]
}

fn provide() -> impl Strategy<Value = Provide> {
    let address = prop::collection::vec(any::<u8>(), 0..=MAX_ADDRESS_LEN).prop_map(List::first_of);
    let addresses = prop::collection::vec(address, 0..=MAX_PROVIDER_ADDRESSES);
    (prop::collection::vec(digest(), 0..=MAX_WANT), addresses).prop_map(|(blobs, addresses)| Provide {
        blobs: List::first_of(blobs),
        addresses: List::first_of(addresses),
    })
}

fn pause() -> impl Strategy<Value = PauseRecord> {
    ("[a-z]{0,64}", any::<bool>(), any::<(u64, u64)>(), certificate()).prop_map(
        |(site, paused, (sequence, time), certificate)| {
            PauseRecord::sign(&key(), &certificate, site.parse().unwrap(), paused, sequence, time)
        },
    )
}

fn word() -> impl Strategy<Value = WanWord> {
    (any::<(u32, u64, bool, bool, bool)>(), prop::option::of(pause())).prop_map(
        |((day, spent, takes, gives, counts), pause)| WanWord { day, spent, takes, gives, counts, pause },
    )
}

fn wanted() -> impl Strategy<Value = WantedImage> {
    ("[!-~]{0,640}", prop::option::of("[a-z0-9/]{0,96}")).prop_map(|(reference, platform)| WantedImage {
        reference: reference.parse().unwrap(),
        platform: platform.map(|platform| platform.parse().unwrap()),
    })
}

fn preloading() -> impl Strategy<Value = Preloading> {
    let why = "[ -~é]{0,512}".prop_map(|why| why.parse().unwrap());
    let state = prop_oneof![
        Just(PreloadState::Running),
        why.clone().prop_map(PreloadState::Waiting),
        Just(PreloadState::Done),
        why.prop_map(PreloadState::Failed),
    ];
    (any::<(u64, u64)>(), state).prop_map(|((here, bytes), state)| Preloading { here, bytes, state })
}

fn lead() -> impl Strategy<Value = Lead> {
    use LeadRefusal::*;
    let refusals = [NoRoute, NoCredentials, NoSpace, Budget, NotForYou].map(Lead::Refuse);
    prop::sample::select([Lead::Have, Lead::Leading].into_iter().chain(refusals).collect::<Vec<_>>())
}

fn answer() -> impl Strategy<Value = Answer> {
    let holding = prop_oneof![
        Just(Holding::No),
        any::<u64>().prop_map(|size| Holding::Held { size }),
        (any::<u64>(), role()).prop_map(|(size, role)| Holding::Arriving { size, role }),
    ];
    prop_oneof![
        Just(Answer::Pong),
        prop::collection::vec(holding, 0..=MAX_WANT).prop_map(|h| Answer::Want(List::first_of(h))),
        prop::option::of(record()).prop_map(Answer::Tag),
        (record(), prop::option::of(prop::collection::vec(any::<u8>(), 0..=MAX_MANIFEST_TOLD))).prop_map(
            |(record, manifest)| {
                let manifest = manifest.map(List::first_of);
                Answer::Resolved(Some(Resolution { record, manifest }))
            }
        ),
        Just(Answer::Resolved(None)),
        (prop::collection::vec(tag_name(), 0..=MAX_TAG_PAGE), any::<bool>())
            .prop_map(|(names, more)| Answer::Tags(TagPage { names: List::first_of(names), more })),
        lead().prop_map(Answer::Lead),
        prop::option::of(word()).prop_map(Answer::Wan),
        any::<bool>().prop_map(Answer::Moved),
        Just(Answer::Provided),
        prop::sample::select(vec![
            Ok(()),
            Err(PreloadRefusal::Busy),
            Err(PreloadRefusal::Name),
            Err(PreloadRefusal::Stopping),
        ])
        .prop_map(Answer::Preload),
        prop::option::of(preloading()).prop_map(Answer::Preloading),
    ]
}

fn attempt() -> impl Strategy<Value = Attempt> {
    any::<(u8, u64)>()
        .prop_map(|(seed, number)| Attempt { signer: SecretKey::from_seed([seed; 32]).node(), number })
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![
        Just(Role::Held),
        Just(Role::Gone),
        any::<(u64, u32)>().prop_map(|(attempt, known)| Role::Leading { attempt, known }),
        any::<(u64, u32)>().prop_map(|(attempt, known)| Role::Candidate { attempt, known }),
        (prop::option::of(attempt()), any::<u32>(), any::<bool>(), any::<bool>()).prop_map(
            |(stream, known, may_lead, led_slowly)| Role::Following { stream, known, may_lead, led_slowly }
        ),
    ]
}

fn update() -> impl Strategy<Value = Update> {
    let run = any::<(u32, u32)>().prop_map(|(from, len)| Run { from, len });
    (role(), prop::collection::vec(run, 0..=MAX_RUNS))
        .prop_map(|(role, runs)| Update { role, here: List::first_of(runs) })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        (any::<u32>(), blob(), prop::option::of(digest()), any::<bool>())
            .prop_map(|(id, blob, known, spares)| Request::Chain { id, blob, known, spares }),
        (any::<u32>(), blob()).prop_map(|(id, blob)| Request::Follow { id, blob }),
        (any::<u32>(), blob(), attempt(), any::<u32>())
            .prop_map(|(id, blob, attempt, from)| Request::States { id, blob, attempt, from }),
        (any::<u32>(), blob(), any::<u32>()).prop_map(|(id, blob, index)| Request::Chunk { id, blob, index }),
        any::<u32>().prop_map(|id| Request::Cancel { id }),
        (blob(), any::<u32>()).prop_map(|(blob, index)| Request::Unlinked { blob, index }),
        (any::<u32>(), blob(), digest()).prop_map(|(id, blob, states)| Request::ClaimedStates {
            id,
            blob,
            states
        }),
    ]
}

fn response() -> impl Strategy<Value = Response> {
    let refusal = prop_oneof![
        any::<u64>().prop_map(|held| Refusal::OtherSize { held }),
        Just(Refusal::NoSuchChunk),
        Just(Refusal::Unreadable),
        Just(Refusal::TooManyFollowed),
        Just(Refusal::GivesNothing),
    ];
    let claim = digest().prop_map(|digest| {
        let size = ChunkMap::new(7).unwrap();
        let mut builder = ChainBuilder::new(digest.algorithm(), size);
        builder.update(&digest.as_bytes()[..7]).unwrap();
        HeldClaim::sign(&key(), &key().network(), &builder.finish().unwrap())
    });
    let stream = (digest(), any::<u64>()).prop_map(|(digest, attempt)| {
        let prefix = StatePrefix::new(digest.algorithm(), ChunkMap::new(MAX_BLOB_LEN).unwrap());
        StreamClaim::sign(&key(), &key().network(), digest, attempt, &prefix)
    });
    prop_oneof![
        (any::<(u32, u32)>(), stream, certificate())
            .prop_map(|((id, len), claim, certificate)| { Response::States { id, claim, certificate, len } }),
        (any::<u32>(), update()).prop_map(|(id, update)| Response::Update { id, update }),
        any::<u32>().prop_map(|id| Response::Elsewhere { id }),
        any::<u32>().prop_map(|id| Response::NotHere { id }),
        any::<(u32, u32)>().prop_map(|(id, len)| Response::ClaimedStates { id, len }),
        any::<(u32, u32)>().prop_map(|(id, len)| Response::Chunk { id, len }),
        (any::<(u32, u32)>(), claim).prop_map(|((id, len), claim)| Response::Chain { id, claim, len }),
        any::<u32>().prop_map(|id| Response::Busy { id }),
        any::<u32>().prop_map(|id| Response::NotHeld { id }),
        (any::<u32>(), refusal).prop_map(|(id, reason)| Response::Refused { id, reason }),
        Just(Response::Free),
    ]
}

fn round<M: Message + PartialEq + std::fmt::Debug>(message: M) {
    let frame = encode_frame(&message).unwrap();
    let (prefix, payload) = frame.split_first_chunk().unwrap();
    assert_eq!(payload_len::<M>(*prefix), Ok(payload.len()));
    assert_eq!(decode_payload::<M>(payload), Ok(message));
    // One byte more or fewer is no message.
    assert!(decode_payload::<M>(&[payload, &[0]].concat()).is_err());
    assert!(decode_payload::<M>(&payload[..payload.len() - 1]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.div_ceil(2)))]

    #[test]
    fn every_message_goes_round(
        question in question(), answer in answer(), request in request(), response in response(),
        certificate in certificate(), record in record(), id in any::<u32>(), site in "[a-z]{0,64}",
        ports in any::<[u16; 3]>(), life in any::<u64>(),
    ) {
        round(Ask { id, question });
        round(Reply { id, answer });
        round(request);
        round(response);
        round(record);
        round(certificate.clone());
        round(Hello {
            version: Version::OURS,
            certificate,
            site: site.parse().unwrap(),
            ports: Ports { tcp: ports[0], quic: ports[1], bulk: ports[2] },
            life,
        });
    }

    #[test]
    fn any_bytes_are_taken_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        hostile::messages(&bytes);
        hostile::frames(&bytes);
        hostile::tag_record(&bytes);
        hostile::pause_record(&bytes);
        hostile::chain(&bytes);
        hostile::states(&bytes);
        hostile::digest(&bytes);
        hostile::certificate(&bytes);
    }

    #[test]
    fn a_damaged_message_is_refused_or_goes_round(
        question in question(), answer in answer(), response in response(), record in record(), pause in pause(),
        at in any::<prop::sample::Index>(), flip in 1..=255u8,
    ) {
        for mut payload in [
            encode_payload(&Ask { id: 1, question }).unwrap(),
            encode_payload(&Reply { id: 1, answer }).unwrap(),
            encode_payload(&response).unwrap(),
            encode_payload(&record).unwrap(),
            encode_payload(&pause).unwrap(),
        ] {
            let at = at.index(payload.len());
            payload[at] ^= flip;
            hostile::messages(&payload);
            hostile::tag_record(&payload);
            hostile::pause_record(&payload);
        }
    }

    #[test]
    fn a_damaged_certificate_admits_nobody(certificate in certificate(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let mut payload = encode_payload(&certificate).unwrap();
        let at = at.index(payload.len());
        payload[at] ^= 1 << bit;
        if let Ok(damaged) = decode_payload::<Certificate>(&payload) {
            prop_assert!(damaged.check(&key().network(), &key().node(), 0, 0).is_err());
        }
    }

    #[test]
    fn states_of_any_bytes_are_taken_without_harm(
        size in 0..(1u64 << 20), before in any::<u8>(), raw in prop::collection::vec(any::<u8>(), 0..1500),
    ) {
        let mut bytes = size.to_le_bytes().to_vec();
        bytes.push(before);
        bytes.extend(raw);
        hostile::states(&bytes);
    }

    #[test]
    fn a_chain_of_any_bytes_is_taken_without_harm(size in 0..(1u64 << 24), fill in any::<u8>(), extra in -1..=1i32) {
        let map = ChunkMap::new(size).unwrap();
        let len = (map.count() as i32 - 1) * 32 + extra;
        let mut bytes = size.to_le_bytes().to_vec();
        bytes.resize(8 + len.max(0) as usize, fill);
        hostile::chain(&bytes);
    }
}

#[test]
fn lengths_are_bounded_at_both_ends() {
    for len in [0, 1 + Request::MAX_LEN as u32, u32::MAX] {
        assert!(matches!(payload_len::<Request>(len.to_be_bytes()), Err(FrameError::Length { .. })), "{len}");
    }
    // A list that announces more items than it may have, with the first few of them there.
    let mut payload =
        encode_payload(&Ask { id: 1, question: Question::Want(List::first_of([Digest::sha256(b"")])) })
            .unwrap();
    payload[2] = MAX_WANT as u8 + 1;
    payload.extend(std::iter::repeat_n(0, 33 * MAX_WANT));
    assert!(matches!(decode_payload::<Ask>(&payload), Err(FrameError::Content { .. })));
    let mut payload = encode_payload(&tags(List::first_of(["a".parse().unwrap()]))).unwrap();
    // The id takes five bytes.
    payload[6] = MAX_TAG_PAGE as u8 + 1;
    payload.extend(std::iter::repeat_n(0, 2 * MAX_TAG_PAGE));
    assert!(matches!(decode_payload::<Reply>(&payload), Err(FrameError::Content { .. })));
    let update = Update { role: Role::Held, here: List::first_of([Run { from: 0, len: 1 }]) };
    let mut payload = encode_payload(&Response::Update { id: 1, update }).unwrap();
    payload[3] = MAX_RUNS as u8 + 1;
    payload.extend(std::iter::repeat_n(0, 2 * MAX_RUNS));
    assert!(matches!(decode_payload::<Response>(&payload), Err(FrameError::Content { .. })));
    assert_eq!(List::<u8, 3>::first_of(0..9).into_vec(), [0, 1, 2]);
    assert!("x".repeat(MAX_SITE_LEN + 1).parse::<SiteName>().is_err());
    assert!("a\nb".parse::<SiteName>().is_err());
}

fn tags(names: List<TagName, MAX_TAG_PAGE>) -> Reply {
    Reply { id: u32::MAX, answer: Answer::Tags(TagPage { names, more: true }) }
}

#[test]
fn the_longest_page_of_tags_fits_into_a_reply() {
    let longest: TagName = "x".repeat(MAX_TAG_LEN).parse().unwrap();
    round(tags(List::first_of(std::iter::repeat_n(longest, MAX_TAG_PAGE))));
    assert!("x".repeat(MAX_TAG_LEN + 1).parse::<TagName>().is_err());
}

#[test]
fn the_longest_manifest_fits_into_a_reply_with_the_longest_record_and_no_longer_one_is_read() {
    let text = |len: usize| "x".repeat(len);
    let key = SecretKey::from_seed([1; 32]);
    let certificate = Certificate::sign(&key, key.node(), Roles::MEMBER, u32::MAX, u64::MAX);
    let meaning = TagMeaning {
        reference: text(MAX_REFERENCE_LEN).parse().unwrap(),
        digest: Digest::sha256(b"a manifest"),
        media_type: text(MAX_MEDIA_TYPE_LEN).parse().unwrap(),
        size: u64::MAX,
        sequence: u64::MAX,
        time: u64::MAX,
        word: TagWord::Resolved,
    };
    let record = TagRecord::sign(&key, &certificate, meaning);
    let reply = |len: usize| {
        let manifest = Some(List::first_of(std::iter::repeat_n(255, len)));
        let answer = Answer::Resolved(Some(Resolution { record: record.clone(), manifest }));
        Reply { id: u32::MAX, answer }
    };
    round(reply(MAX_MANIFEST_TOLD));
    let mut payload = encode_frame(&reply(MAX_MANIFEST_TOLD)).unwrap().split_off(PREFIX_LEN);
    // Its length, as a number of two bytes, stands before it.
    let place = payload.len() - MAX_MANIFEST_TOLD - 2;
    assert_eq!(payload[place..place + 2], (MAX_MANIFEST_TOLD as u16).to_le_bytes());
    payload[place..place + 2].copy_from_slice(&(MAX_MANIFEST_TOLD as u16 + 1).to_le_bytes());
    payload.push(255);
    assert!(decode_payload::<Reply>(&payload).is_err());
}

#[test]
fn the_longest_requests_and_responses_fit() {
    let digest = Digest::of(Algorithm::Sha512, b"");
    let (id, blob) = (u32::MAX, BlobName { digest, size: u64::MAX });
    let attempt = Attempt { signer: key().node(), number: u64::MAX };
    round(Request::Chain { id, blob, known: Some(digest), spares: true });
    round(Request::States { id, blob, attempt, from: u32::MAX });
    round(Request::ClaimedStates { id, blob, states: digest });
    let run = Run { from: u32::MAX, len: u32::MAX };
    let role = Role::Following { stream: Some(attempt), known: u32::MAX, may_lead: true, led_slowly: false };
    let here = List::first_of(std::iter::repeat_n(run, MAX_RUNS));
    round(Response::Update { id, update: Update { role, here } });
    let arriving = Holding::Arriving { size: u64::MAX, role };
    round(Reply { id, answer: Answer::Want(List::first_of(std::iter::repeat_n(arriving, MAX_WANT))) });
    let prefix = StatePrefix::new(Algorithm::Sha512, ChunkMap::new(MAX_BLOB_LEN).unwrap());
    let claim = StreamClaim::sign(&key(), &key().network(), digest, u64::MAX, &prefix);
    let certificate = Certificate::sign(&key(), key().node(), Roles::from_bits(u32::MAX), u32::MAX, u64::MAX);
    round(Response::States { id, claim, certificate, len: u32::MAX });
    let [origin, repository] =
        [MAX_ORIGIN_LEN, MAX_REPOSITORY_LEN].map(|len| "x".repeat(len).parse().unwrap());
    round(Ask { id, question: Question::Lead { blob, origin, repository } });
    let [reference, platform] = [MAX_REFERENCE_LEN, MAX_PLATFORM_LEN].map(|len| "x".repeat(len));
    let wanted =
        WantedImage { reference: reference.parse().unwrap(), platform: Some(platform.parse().unwrap()) };
    round(Ask { id, question: Question::Preload(wanted) });
    let why = Text::cut(&"x".repeat(MAX_WHY_LEN + 1));
    let state = PreloadState::Failed(why);
    let preloading = Preloading { here: u64::MAX, bytes: u64::MAX, state };
    round(Reply { id, answer: Answer::Preloading(Some(preloading)) });
}

#[test]
fn words_for_people_are_cut_where_a_character_ends() {
    assert_eq!(Text::<5>::cut("aéé\n").as_str(), "aéé");
    assert_eq!(Text::<6>::cut("aéé\nb").as_str(), "aéé ");
    assert_eq!(Text::<2>::cut("aé").as_str(), "a");
}

#[test]
fn the_chunks_of_an_update_are_in_order_and_within_the_blob() {
    let map = ChunkMap::new(10 * (32 << 10)).unwrap();
    let chunks = |runs: &[(u32, u32)]| {
        let here = List::first_of(runs.iter().map(|(from, len)| Run { from: *from, len: *len }));
        let chunks = Update { role: Role::Held, here }.chunks(&map)?.map(ChunkIndex::get).collect::<Vec<_>>();
        Some(chunks)
    };
    assert_eq!(chunks(&[]), Some(vec![]));
    assert_eq!(chunks(&[(0, 2), (2, 1), (9, 1)]), Some(vec![0, 1, 2, 9]));
    for bad in [&[(0, 0)][..], &[(0, 11)], &[(10, 1)], &[(3, 1), (0, 1)], &[(0, 2), (1, 1)], &[(1, u32::MAX)]]
    {
        assert_eq!(chunks(bad), None, "{bad:?}");
    }
}

#[test]
fn another_version_is_named() {
    let mut other = PROTOCOL_VERSION.wrapping_add(1).to_be_bytes().to_vec();
    other.extend_from_slice(b"whatever it says from then on");
    assert_eq!(
        Hello::read(&other),
        Err(FrameError::Version { ours: PROTOCOL_VERSION, theirs: PROTOCOL_VERSION.wrapping_add(1) })
    );
}
