use bytes::Bytes;

use super::*;
use crate::coalesce::{Coalescer, Rule};
use crate::config::OutageLimits;

fn outgoing(size: usize) -> Outgoing {
    Outgoing::new("upload:x".into(), Bytes::from(vec![b'1'; size]))
}

#[tokio::test]
async fn a_burst_goes_out_in_parts() {
    let outbox = Outbox::default();
    let push = || outbox.push(Item::new(outgoing(1), None));
    assert!(!push(), "an idle outbox sends at once");
    assert!(!push(), "and what comes before it has begun goes along");
    assert_eq!(outbox.next(10, 100).await.unwrap().len(), 2);
    assert!(push(), "while that is under way, the rest of the turn is gathered");
    assert!(push());
    outbox.done();
    let more = tokio::time::timeout(std::time::Duration::ZERO, outbox.next(10, 100)).await;
    assert!(more.is_err(), "not due before the end of the turn");
    outbox.flush();
    assert!(!push());
    assert_eq!(outbox.next(2, 100).await.unwrap().len(), 2);
    assert_eq!(outbox.next(2, 100).await.unwrap().len(), 1, "what did not fit stays due");
    assert!(push());
    outbox.done();
    let more = tokio::time::timeout(std::time::Duration::ZERO, outbox.next(10, 100)).await;
    assert!(more.is_err(), "where one of several came before, one is not sent alone");
    for number in 2..=GATHERED {
        assert_eq!(push(), number < GATHERED, "enough do not wait for the end of the turn");
    }
    assert_eq!(outbox.next(100, 100).await.unwrap().len(), GATHERED);
    outbox.done();
    assert!(push());
    outbox.flush();
    assert_eq!(outbox.next(100, 100).await.unwrap().len(), 1);
    outbox.done();
    assert!(!push(), "one after another they are sent at once again");
    outbox.close();
    assert_eq!(outbox.next(2, 100).await.unwrap().len(), 1, "closing lets out what waits");
    assert!(outbox.next(2, 100).await.is_none());
}

#[tokio::test]
async fn a_batch_is_bounded_in_bytes_too() {
    let outbox = Outbox::default();
    for size in [60, 30, 20, 500, 1] {
        outbox.try_push(outgoing(size), 10, 1000).unwrap();
    }
    for count in [2, 1, 1, 1] {
        assert_eq!(outbox.next(10, 100).await.unwrap().len(), count);
        outbox.done();
    }
    outbox.try_push(outgoing(5), 10, 1000).unwrap();
    assert_eq!(outbox.give_up().len(), 1);
    assert_eq!(outbox.waiting(), (0, 0));
    assert!(outbox.next(1, 100).await.is_none());
}

#[tokio::test]
async fn limits_refuse_and_order_is_kept() {
    let outbox = Outbox::default();
    assert!(outbox.try_push(outgoing(10), 2, 15).is_ok());
    assert!(matches!(
        outbox.try_push(outgoing(6), 2, 15),
        Err(Error::Full { messages: 1, bytes: 10 })
    ));
    assert!(outbox.try_push(outgoing(5), 2, 15).is_ok());
    assert!(outbox.try_push(outgoing(0), 2, 15).is_err());
    let batch = outbox.next(10, 100).await.unwrap();
    assert_eq!(batch.iter().map(|item| item.outgoing.payload.len()).collect::<Vec<_>>(), [10, 5]);
    assert_eq!(outbox.waiting(), (2, 15));
    outbox.done();
    assert_eq!(outbox.waiting(), (0, 0));
    outbox.drained().await;
    outbox.close();
    assert!(outbox.next(1, 100).await.is_none());
}

#[tokio::test]
async fn who_waits_for_what_came_first_does_not_wait_for_the_rest() {
    let outbox = Outbox::default();
    for _ in 0..2 {
        outbox.try_push(outgoing(1), 10, 100).unwrap();
    }
    let count = outbox.came();
    outbox.try_push(outgoing(1), 10, 100).unwrap();
    assert!(!outbox.is_past(count), "it waits");
    assert_eq!(outbox.next(2, 100).await.unwrap().len(), 2);
    assert!(!outbox.is_past(count), "it is under way");
    let waiting = async {
        tokio::join!(outbox.past(count), async { outbox.done() });
    };
    waiting.await;
    assert!(!outbox.is_past(outbox.came()));
    drop(outbox.give_up());
    outbox.past(outbox.came()).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_out_an_outage_is_waited_for_until_it_expires() {
    let limits =
        OutageLimits { messages: 10, bytes: 100, time: std::time::Duration::from_secs(60) };
    let coalescer = Arc::new(Coalescer::new(&[Rule::of_uploads()]).unwrap());
    let keeping = Keeping { limits, coalescer, stats: Arc::default() };
    let outbox = Outbox::new(Some(Arc::new(keeping)));
    let progress = || {
        let payload = Bytes::from_static(br#"{"action":"upload_progress"}"#);
        Outgoing::new("upload:x".into(), payload)
    };
    outbox.try_push(progress(), 10, 100).unwrap();
    let first = outbox.came();
    outbox.try_push(outgoing(1), 10, 100).unwrap();
    let back = outbox.next(1, 100).await.unwrap();
    drop(outbox.hold(back));
    outbox.try_push(progress(), 10, 100).unwrap();
    let before = outbox.came();
    outbox.try_push(progress(), 10, 100).unwrap();
    assert_eq!(outbox.waiting().0, 3, "the last took the place of the one before it");
    assert!(!outbox.is_past(first), "what came back is the same as before");
    let mut taken = outbox.next(2, 100).await.unwrap();
    outbox.done();
    assert!(outbox.is_past(first) && !outbox.is_past(before), "a place is waited for");
    assert_eq!(taken.pop().map(|item| item.number), Some(1));
    tokio::time::advance(std::time::Duration::from_secs(61)).await;
    let more = tokio::time::timeout(std::time::Duration::ZERO, outbox.next(1, 100)).await;
    assert!(more.is_err(), "it has expired");
    outbox.past(before).await;
}
