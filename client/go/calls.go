package aclserve

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "aclserve/aclservev1"
)

const (
	itemOverhead = 16 // room for an item's tag and length, and for the message around it
	packItems    = 32
	packBytes    = 1 << 20
)

// run opens calls until the stream has ended.
func (s *Stream) run() {
	defer s.cancel()
	defer close(s.results)
	for {
		err := s.call()
		delay, again := s.lost(err)
		if again && !sleep(s.ctx, delay) {
			err, again = failure(codes.Canceled, "STREAM_CLOSED", "the stream was closed"), false
		}
		if !again {
			s.end(err)
			return
		}
	}
}

// call is one call, from its opening to its end; nil when the server ended it with OK.
func (s *Stream) call() *Error {
	ctx, cancel := context.WithCancel(s.ctx)
	sending := make(chan struct{})
	defer func() { cancel(); <-sending }()
	late := time.AfterFunc(s.options.OpenTimeout, cancel)
	defer late.Stop()
	call, err := s.client.StreamInfer(ctx)
	if err == nil {
		err = call.Send(&pb.StreamInferRequest{Request: &pb.StreamInferRequest_Config{Config: s.config}})
	}
	if err != nil && !errors.Is(err, io.EOF) { // after io.EOF, Recv tells the reason
		close(sending)
		return CallError(err)
	}
	connecting := true
	for {
		response, err := call.Recv()
		if connecting {
			if !late.Stop() && s.ctx.Err() == nil {
				err = failure(codes.DeadlineExceeded, "STREAM_NOT_READY",
					"the server did not accept the stream within %v", s.options.OpenTimeout)
			}
			connecting = false
			if ready := response.GetReady(); err == nil && ready != nil {
				s.opened(ready)
				go func() { defer close(sending); s.send(ctx, call) }()
				continue
			}
			close(sending)
			if err == nil || errors.Is(err, io.EOF) {
				return failure(codes.Internal, "STREAM_NOT_READY", "the server did not answer the configuration")
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return CallError(err)
		}
		s.receive(response)
	}
}

// opened takes note of a call's configuration.
func (s *Stream) opened(ready *pb.StreamReady) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready == nil {
		close(s.isReady)
	} else {
		s.resumed++
	}
	s.ready = ready
	s.window = window{
		int(ready.GetMaxPendingItems()), int(ready.GetMaxPendingBytes()),
		ready.GetPolicy() > pb.FramePolicy_FRAME_POLICY_WAIT,
	}
	if len(s.pending) == 0 {
		s.failures = 0
	}
	s.notify()
}

// send sends on a call what the window admits, until nothing more may be sent on it.
func (s *Stream) send(ctx context.Context, call grpc.BidiStreamingClient[pb.StreamInferRequest, pb.StreamInferResponse]) {
	for {
		items, over := s.next(ctx)
		if over {
			_ = call.CloseSend() // it never fails
			return
		}
		list := &pb.StreamInferRequest_Items{Items: &pb.ItemList{Items: items}}
		if call.Send(&pb.StreamInferRequest{Request: list}) != nil { // Recv tells the reason
			return
		}
	}
}

// next waits for items that may be sent now, together; over when none will follow on this call.
func (s *Stream) next(ctx context.Context) (items []*pb.InferItem, over bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.goingAway || s.finished && len(s.outgoing) == 0 {
			return nil, true
		}
		room := min(packBytes, s.messageLimit())
		for len(s.outgoing) > 0 && len(items) < packItems {
			e := s.outgoing[0]
			room -= proto.Size(e.item) + itemOverhead
			if len(items) > 0 && room < 0 || !s.window.fits(s.away, e.bytes) {
				break
			}
			s.outgoing = s.outgoing[1:]
			e.away = true
			s.away.add(e.bytes)
			items = append(items, e.item)
		}
		if len(items) > 0 {
			return items, false
		}
		if s.wait(ctx) != nil {
			return nil, true
		}
	}
}

// receive takes one message of the server, and waits until its results are read.
func (s *Stream) receive(response *pb.StreamInferResponse) {
	var results []*pb.InferResult
	s.mu.Lock()
	switch response := response.Response.(type) {
	case *pb.StreamInferResponse_Results:
		for _, result := range response.Results.Results {
			if s.answered(result) {
				results = append(results, result)
			}
		}
		s.failures = 0
	case *pb.StreamInferResponse_Window:
		s.window.items, s.window.bytes = int(response.Window.MaxPendingItems), int(response.Window.MaxPendingBytes)
	case *pb.StreamInferResponse_GoingAway:
		s.goingAway = true
	}
	s.notify()
	s.mu.Unlock()
	s.deliver(results)
}

// answered takes note of an item's result; false for an item that is not pending.
func (s *Stream) answered(result *pb.InferResult) bool {
	e, pending := s.pending[result.Id]
	if !pending {
		return false
	}
	delete(s.pending, result.Id)
	s.added.remove(e.bytes)
	if e.away {
		s.away.remove(e.bytes)
	}
	s.summary.ReceivedItems++
	switch outcome := result.Outcome.(type) {
	case *pb.InferResult_Outputs:
		s.summary.SucceededItems++
	case *pb.InferResult_Dropped:
		s.summary.DroppedItems++
		s.summary.Drops[strings.TrimPrefix(outcome.Dropped.Reason.String(), "DROP_REASON_")]++
	default:
		s.summary.FailedItems++
	}
	return true
}

func (s *Stream) deliver(results []*pb.InferResult) {
	for _, result := range results {
		select {
		case s.results <- result:
		case <-s.ctx.Done():
			return
		}
	}
}

// lost tells whether to open the stream again after a call's end, and when.
func (s *Stream) lost(err *Error) (delay time.Duration, again bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.goingAway && len(s.pending) > 0 || err == nil && s.goingAway && !s.finished {
		err = failure(codes.Unavailable, "SERVER_GOING_AWAY", "the server is shutting down")
	}
	if err == nil || s.ctx.Err() != nil || !err.resumable() || s.finished && len(s.pending) == 0 || s.isShut() {
		return 0, false
	}
	s.goingAway, s.away, s.outgoing = false, load{}, nil
	for _, e := range s.pending {
		e.away = false
		s.outgoing = append(s.outgoing, e)
	}
	slices.SortFunc(s.outgoing, func(a, b *entry) int { return a.number - b.number })
	s.failures++
	if s.failures == 1 {
		limit := s.options.ResumeTimeout
		if s.ready == nil {
			limit = s.options.OpenTimeout
		}
		s.deadline = time.Now().Add(limit)
	}
	switch {
	case err.RetryDelay > 0:
		delay = err.RetryDelay
	case s.failures == 1 && err.Reason == "SERVER_GOING_AWAY":
	default:
		delay = min(s.options.Backoff<<min(s.failures-1, 16), 5*time.Second)
		delay = time.Duration(float64(delay) * (0.5 + rand.Float64()/2)) // many clients do not come at the same time
	}
	return delay, s.failures <= s.options.ResumeAttempts && time.Now().Add(delay).Before(s.deadline)
}

// end is the last word: err, or an answer to all that is left.
func (s *Stream) end(err *Error) {
	s.mu.Lock()
	if s.ctx.Err() != nil && err == nil {
		err = failure(codes.Canceled, "STREAM_CLOSED", "the stream was closed")
	} else if s.finished && len(s.pending) == 0 {
		err = nil
	}
	var results []*pb.InferResult
	if err == nil {
		for id := range s.pending {
			results = append(results, &pb.InferResult{Id: id, Outcome: &pb.InferResult_Error{Error: &pb.ItemError{
				Code: int32(codes.Internal), Reason: "ITEM_NOT_ANSWERED",
				Message: "the server ended the stream without answering this item",
			}}})
		}
		for _, result := range results {
			s.answered(result)
		}
	}
	s.err, s.ended = err, true
	if s.ready == nil {
		close(s.isReady)
	}
	s.notify()
	s.mu.Unlock()
	s.deliver(results)
}

func (s *Stream) messageLimit() int {
	if stated := int(s.ready.GetMaxMessageBytes()); stated > 0 {
		return min(stated, maxMessageBytes)
	}
	return maxMessageBytes
}

func (s *Stream) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// wait releases the lock until something has changed.
func (s *Stream) wait(ctx context.Context) error {
	changed := s.changed
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func sleep(ctx context.Context, delay time.Duration) bool {
	select {
	case <-time.After(delay):
		return true
	case <-ctx.Done():
		return false
	}
}

func orDefault[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}
