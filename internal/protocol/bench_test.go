package protocol

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkLane is what an event costs a lane, from the page to its commit, beside
// the handler and the database. All events are the lane's own.
func BenchmarkLane(b *testing.B) {
	for _, kind := range []struct {
		name string
		LaneKind
	}{{"plain", Plain}, {"tx", Transactional}, {"batch", Batched}} {
		for _, batch := range []int{100, 1000} {
			b.Run(fmt.Sprintf("%s-%d", kind.name, batch), func(b *testing.B) {
				lane := NewLane(Assignment{Generation: 1, Total: 1}, LaneConfig{Kind: kind.LaneKind, Batch: batch, Lease: time.Hour})
				page := make([]Key, batch)
				var position int64
				answer := LaneAnswer{}
				committed := 0
				b.ReportAllocs()
				for committed < b.N {
					a := lane.Next(testStart, Signals{}, answer)
					answer = LaneAnswer{}
					switch a.Do {
					case LaneLoad:
						answer.Found = Found{Generation: 1, Exists: true}
					case LaneRead:
						for i := range page {
							position++
							page[i] = Key{Position: position, Slot: i % Slots}
						}
						answer.Page, answer.More = page, true
					case LaneCommit, LaneSave:
						committed += batch
					case LaneLoadParked, LaneOpen, LaneHandle, LaneWrite:
					default:
						b.Fatalf("the lane wants to %s", a)
					}
				}
			})
		}
	}
}

// BenchmarkFeed is what a page costs a lane that asks for it, and its share of the
// reads, where so many lanes stand together.
func BenchmarkFeed(b *testing.B) {
	for _, n := range []int{1, 16, 80} {
		b.Run(fmt.Sprintf("lanes-%d", n), func(b *testing.B) {
			const limit = 100
			feed := NewFeed(FeedConfig{Bytes: 1 << 20, Page: 1000, Poll: time.Second})
			lanes := make([]*FeedLane, n)
			for i := range lanes {
				lanes[i] = feed.Enter(0, 0, 1)
			}
			keys := make([]Key, 1000)
			after := int64(0) // of all lanes
			b.ReportAllocs()
			for asked := 0; asked < b.N; {
				var next int64
				for _, l := range lanes {
					s := feed.Ask(testStart, l, after, limit)
					asked++
					for _, r := range feed.Fetches(testStart) {
						page := keys[:r.Limit]
						for i := range page {
							page[i].Position = r.After + 1 + int64(i)
						}
						feed.Fetched(testStart, r.Window, FeedPage{Keys: page, Passed: r.After + int64(r.Limit), More: true, Bytes: 100 * r.Limit})
						if s.Wait {
							s = feed.Ask(testStart, l, after, limit)
						}
					}
					if s.Count == 0 {
						b.Fatalf("a lane after %d was served nothing", after)
					}
					next = s.Passed
				}
				after = next
			}
		})
	}
}

// BenchmarkStep is the decision of a group in which one of 10,000 workers leaves.
// It opens and activates the next generation.
func BenchmarkStep(b *testing.B) {
	g := Group{}
	for i := range 10_000 {
		g.Members = append(g.Members, Member{ID: WorkerID(fmt.Sprint("w", i)), Joined: testStart, Lease: time.Minute, LeaseEnd: testStart.Add(time.Minute)})
	}
	g, _ = Step(g, testStart, Watch{})
	for i := range g.Members {
		g.Members[i].Holds = 0 // all have stopped
	}
	leaves := Request{Worker: "w17", Leave: true}
	b.ReportAllocs()
	for b.Loop() {
		if _, d := Step(Apply(g, leaves, testStart), testStart, Watch{}); !d.Activated {
			b.Fatalf("it decided %q", d)
		}
	}
}
