// Package aclserve streams items to an aclserve server and gives back one result for each.
//
// The messages are the generated ones of aclserve/aclservev1; every other call of the server is there as well.
package aclserve

import (
	"context"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/protobuf/proto"

	pb "aclserve/aclservev1"
)

// Options of a stream. Zero stands for the value in brackets.
type Options struct {
	// OpenTimeout bounds the time until the stream is ready [30 s].
	OpenTimeout time.Duration
	// ResumeTimeout bounds how long a stream that was ready may be without a server [2 min].
	ResumeTimeout time.Duration
	// ResumeAttempts is how often a lost stream is opened again without an answer in between [30]; -1 for never.
	ResumeAttempts int
	// Backoff is the wait before the second attempt; it doubles, up to 5 s [100 ms].
	Backoff time.Duration
}

// entry is an item that is not answered.
type entry struct {
	item          *pb.InferItem
	number, bytes int
	away          bool
}

// Stream sends items and gives one result for each, over as many calls as that takes: when the server is lost or goes
// away, the stream is opened again and items without an answer are sent again. An item may so run twice; it still has
// one result. All methods may be called from any goroutine.
type Stream struct {
	client  pb.ModelServiceClient
	isShut  func() bool // the caller has closed the connection
	config  *pb.StreamConfig
	options Options
	ctx     context.Context
	cancel  context.CancelFunc
	results chan *pb.InferResult
	isReady chan struct{} // closed when the stream was ready once, or ended

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced with every change
	ready     *pb.StreamReady
	window    window
	pending   map[string]*entry
	outgoing  []*entry // those of pending that are still to be sent, in the order of sending
	added     load     // of pending
	away      load     // of those that the server has
	sent      int
	finished  bool
	goingAway bool
	ended     bool
	err       *Error
	summary   *pb.StreamSummary
	resumed   int
	failures  int
	deadline  time.Time // for the attempts since the first failure
}

// Open opens a stream and waits until the server has accepted its configuration. It lives until its results have ended,
// or until ctx ends.
func Open(
	ctx context.Context, conn *grpc.ClientConn, config *pb.StreamConfig, options Options,
) (*Stream, error) {
	orDefault(&options.OpenTimeout, 30*time.Second)
	orDefault(&options.ResumeTimeout, 2*time.Minute)
	orDefault(&options.ResumeAttempts, 30)
	orDefault(&options.Backoff, 100*time.Millisecond)
	s := &Stream{
		client: pb.NewModelServiceClient(conn), config: config, options: options,
		isShut:  func() bool { return conn.GetState() == connectivity.Shutdown },
		results: make(chan *pb.InferResult), isReady: make(chan struct{}), changed: make(chan struct{}),
		pending: map[string]*entry{}, summary: &pb.StreamSummary{Drops: map[string]uint64{}},
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	go s.run()
	<-s.isReady
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready == nil {
		return nil, s.err
	}
	return s, nil
}

// Send hands an item over, after waiting for room in the window, and returns its id: its own, or its position in the
// stream. The item is the stream's from then on. Results must be read meanwhile, by another goroutine.
func (s *Stream) Send(ctx context.Context, item *pb.InferItem) (string, error) {
	bytes := inlineBytes(item)
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && !s.finished && !s.ended && !s.window.fits(s.added, bytes) {
		if err := s.wait(ctx); err != nil {
			return "", err
		}
	}
	if s.err != nil {
		return "", s.err
	}
	if s.finished || s.ended {
		return "", failure(codes.FailedPrecondition, "STREAM_FINISHED", "the stream is finished; open another one")
	}
	if item.Id == "" {
		item.Id = strconv.Itoa(s.sent)
	}
	if _, known := s.pending[item.Id]; known {
		return "", failure(codes.AlreadyExists, "DUPLICATE_ITEM_ID", "item %q is pending on this stream", item.Id)
	}
	if size, most := proto.Size(item)+itemOverhead, s.messageLimit(); size > most {
		return "", failure(codes.ResourceExhausted, "MESSAGE_TOO_LARGE",
			"item %q takes %d bytes; one message may have %d", item.Id, size, most)
	}
	e := &entry{item: item, number: s.sent, bytes: bytes}
	s.sent++
	s.pending[item.Id] = e
	s.outgoing = append(s.outgoing, e)
	s.added.add(bytes)
	s.notify()
	return item.Id, nil
}

// Finish says that no item follows. What was sent is still answered; then Results ends.
func (s *Stream) Finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finished = true
	s.notify()
}

// Results gives each item's outcome: outputs, an error (see ItemError), or the notice that it was dropped. It is closed
// when the stream has ended; Err then tells whether it broke.
func (s *Stream) Results() <-chan *pb.InferResult { return s.results }

// Err is what broke the stream, nil if nothing did. Items without a result are then lost.
func (s *Stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return nil
	}
	return s.err
}

// Summary counts the results, over all calls.
func (s *Stream) Summary() *pb.StreamSummary {
	s.mu.Lock()
	defer s.mu.Unlock()
	return proto.CloneOf(s.summary)
}

// Ready is what the server answered to the configuration: window, order, policy.
func (s *Stream) Ready() *pb.StreamReady {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// Resumed tells how often the stream was opened again.
func (s *Stream) Resumed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resumed
}

// Close gives the stream up, if it has not ended.
func (s *Stream) Close() { s.cancel() }
