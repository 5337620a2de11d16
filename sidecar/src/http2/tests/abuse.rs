//! What one side may do to make work, hold memory or stop others, and how far that goes.

use super::*;

#[tokio::test]
async fn what_makes_work_without_end_ends_the_connection() {
    local(async {
        // CVE-2025-8671: the streams that we break off count as those that it breaks off.
        let mut raw = Raw::open().await;
        for i in 0..1_100 {
            raw.ask(i * 2 + 1, "/never", false);
            frame::window_update(&mut raw.out, i * 2 + 1, 0);
        }
        assert_eq!(gone(&raw.hear().await), Some(Code::ENHANCE_YOUR_CALM));

        let mut raw = Raw::open().await;
        frame::settings(&mut raw.out, &[(frame::INITIAL_WINDOW_SIZE, 1); 33]);
        assert_eq!(gone(&raw.hear().await), Some(Code::ENHANCE_YOUR_CALM));

        // One that was answered in full may be broken off as often as one likes.
        let mut raw = Raw::open().await;
        for i in 0..1_100 {
            raw.ask(i * 2 + 1, "/early", true);
        }
        raw.flush().await;
        (0..1_100).for_each(|i| frame::reset(&mut raw.out, i * 2 + 1, Code::NO_ERROR));
        raw.ask(2_201, "/early", true);
        assert_ne!(gone(&raw.hear().await), Some(Code::PROTOCOL_ERROR));
    })
    .await;
}

#[tokio::test]
async fn what_was_sent_with_a_request_that_was_broken_off_leaves_the_window() {
    local(async {
        let mut raw = Raw::open().await;
        let mut id = 1;
        // More than the connection's window in all.
        for _ in 0..2_200 {
            raw.ask(id, "/echo", false);
            frame::put(&mut raw.out, frame::DATA, 0, id, &[0; 16_000]);
            frame::reset(&mut raw.out, id, Code::CANCEL);
            raw.ask(id + 2, "/early", true);
            id += 4;
            raw.flush().await;
        }
        raw.ask(id, "/early", true);
        let heard = raw.hear().await;
        assert_eq!(gone(&heard), None);
        assert!(heard.iter().any(|(head, _)| head.id == id), "no answer to the last");
    })
    .await;
}

#[tokio::test]
async fn a_head_of_few_bytes_and_many_fields_is_refused() {
    local(async {
        let mut raw = Raw::open().await;
        for (id, fields) in [(1, 250), (3, 300)] {
            let mut block = vec![0x82, 0x86, 0x84, 0x01, 1, b'a'];
            // A field that goes into the table, and then again and again by its number there.
            block.extend_from_slice(b"\x40\x01b\x01c");
            block.resize(block.len() + fields, 0x80 | 62);
            let flags = frame::END_HEADERS | frame::END_STREAM;
            frame::put(&mut raw.out, frame::HEADERS, flags, id, &block);
        }
        let heard = raw.hear().await;
        let status = |id| {
            let (_, block) = heard.iter().find(|(head, _)| head.kind == frame::HEADERS && head.id == id).unwrap();
            block.iter().position(|b| *b == 0x88)
        };
        // 0x88 is `:status: 200`.
        assert!(status(1).is_some(), "{heard:?}");
        assert_eq!(status(3), None, "{heard:?}");
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_a_100_gets_it_when_the_body_is_wanted() {
    local(async {
        for (path, heads) in [("/echo", 1), ("/never", 0)] {
            let mut raw = Raw::open().await;
            let mut block = vec![0x83, 0x86, 0x04, path.len() as u8];
            block.extend_from_slice(path.as_bytes());
            block.extend_from_slice(b"\x01\x01a\x00\x06expect\x0c100-continue");
            frame::put(&mut raw.out, frame::HEADERS, frame::END_HEADERS, 1, &block);
            let heard = raw.hear().await;
            let heads_heard: Vec<_> = heard.iter().filter(|(head, _)| head.kind == frame::HEADERS).collect();
            assert_eq!(heads_heard.len(), heads, "{path}");
            assert!(heads_heard.iter().all(|(head, _)| !head.has(frame::END_STREAM)));
        }
    })
    .await;
}

#[tokio::test]
async fn a_small_body_does_not_wait_for_the_end_of_a_large_one() {
    local(async {
        let sender = ours();
        let mut large = send(&sender, request("GET", "/bytes/5000000", Body::Empty)).await.unwrap().into_body();
        let moved = Rc::new(Cell::new(0));
        let count = Rc::clone(&moved);
        let reading = spawn_local(async move {
            while let Some(Ok(frame)) = poll_fn(|cx| large.poll(cx)).await {
                count.set(count.get() + frame.into_data().unwrap().len());
            }
        });
        let before = moved.get();
        let (status, small) = ask(&sender, "GET", "/bytes/300000", Body::Empty).await.unwrap();
        assert_eq!((status, small.len()), (200, 300_000));
        let meanwhile = moved.get() - before;
        assert!(meanwhile < 2_000_000, "{meanwhile} bytes of the large one went first");
        reading.await.unwrap();
        assert_eq!(moved.get(), 5_000_000);
    })
    .await;
}

#[tokio::test]
async fn what_never_left_is_known_to_be_undone() {
    local(async {
        let (near, far) = tokio::io::duplex(100_000);
        let (sender, driver) = client::start(near, None);
        spawn_local(driver);
        tokio::task::yield_now().await;
        drop(far);
        let error = send(&sender, request("POST", "/", Body::Full("x".into()))).await.unwrap_err();
        assert!(error.unsent || matches!(error.error, Error::Unprocessed(_)), "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_connection_with_no_stream_left_says_so() {
    local(async {
        let mut raw = Raw::open().await;
        raw.ask(1, "/early", true);
        assert!(!raw.hear().await.is_empty());
        let (near, mut far) = tokio::io::duplex(100_000);
        let (sender, driver) = client::start(near, None);
        spawn_local(driver);
        let mut settings = BytesMut::new();
        frame::settings(&mut settings, &[(frame::MAX_CONCURRENT_STREAMS, 2)]);
        far.write_all(&settings).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(sender.room(), 2);
        let sender = Rc::new(sender);
        let caller = Rc::clone(&sender);
        let call = spawn_local(async move { send(&caller, request("GET", "/", Body::Empty)).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!((sender.room(), sender.streams()), (1, 1));
        call.abort();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!((sender.room(), sender.streams()), (2, 0));
    })
    .await;
}
