package aclserve

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "aclserve/aclservev1"
)

func TestEveryItemHasOneResult(t *testing.T) {
	opened, _, err := open(t, Options{}, echo)
	stream := must(t, opened, err)
	if ids := exchange(t, stream, 20); !slices.Equal(ids, numbers(20)) {
		t.Errorf("got results of %v", ids)
	}
	if err := stream.Err(); err != nil {
		t.Error(err)
	}
	if got := stream.Summary(); got.ReceivedItems != 20 || got.SucceededItems != 20 {
		t.Errorf("got the summary %v", got)
	}
	if _, err := stream.Send(t.Context(), &pb.InferItem{}); err == nil {
		t.Error("a finished stream took an item")
	}
}

// The server answers only when the window is full, so a client that sends too little hangs; the script catches one that
// sends too much.
func TestWindow(t *testing.T) {
	opened, _, err := open(t, Options{}, func(c *scripted) error {
		c.ready(3)
		held := c.items(3)
		c.resize(1)
		for _, id := range held {
			c.results(done(id))
		}
		for range 5 {
			c.results(done(c.items(1)[0]))
		}
		c.resize(2)
		for range 3 {
			for _, id := range c.items(2) {
				c.results(done(id))
			}
		}
		return nil
	})
	if ids := exchange(t, must(t, opened, err), 14); !slices.Equal(ids, numbers(14)) {
		t.Errorf("got results of %v", ids)
	}
}

func TestWindowInBytes(t *testing.T) {
	w := window{items: 10, bytes: 100}
	for _, c := range []struct {
		load  load
		bytes int
		want  bool
	}{{load{}, 500, true}, {load{1, 60}, 40, true}, {load{1, 60}, 41, false}, {load{10, 0}, 0, false}} {
		if got := w.fits(c.load, c.bytes); got != c.want {
			t.Errorf("an item of %d bytes beside %v: got %v", c.bytes, c.load, got)
		}
	}
	w.drops = true
	if !w.fits(load{41, 0}, 0) || w.fits(load{42, 0}, 0) {
		t.Error("a policy that drops takes the window and 32 items more")
	}
}

func TestResumesALostStream(t *testing.T) {
	var again []string
	opened, s, err := open(t, Options{},
		func(c *scripted) error {
			c.ready(4)
			ids := c.items(4)
			c.results(done(ids[0]))
			return status.Error(codes.Unavailable, "gone")
		},
		func(c *scripted) error { return status.Error(codes.Unavailable, "not yet") },
		func(c *scripted) error {
			c.ready(2)
			c.send(&pb.StreamInferResponse{Response: &pb.StreamInferResponse_Results{
				Results: &pb.ResultList{Results: []*pb.InferResult{done("0")}},
			}}) // answered before: not handed out again
			for id, more := c.item(); more; id, more = c.item() {
				again = append(again, id)
				c.results(done(id))
			}
			return nil
		})
	stream := must(t, opened, err)
	if ids := exchange(t, stream, 10); !slices.Equal(ids, numbers(10)) {
		t.Errorf("got results of %v", ids)
	}
	if !slices.Equal(again, numbers(10)[1:]) || s.made != 3 || stream.Resumed() != 1 || stream.Err() != nil {
		t.Errorf("%v came again in %d calls, resumed %d times, %v", again, s.made, stream.Resumed(), stream.Err())
	}
}

func TestGoesElsewhereWhenTheServerGoesAway(t *testing.T) {
	opened, s, err := open(t, Options{},
		func(c *scripted) error {
			c.ready(4)
			ids := c.items(2)
			c.send(&pb.StreamInferResponse{Response: &pb.StreamInferResponse_GoingAway{
				GoingAway: &pb.GoingAway{LastAcceptedId: ids[1]},
			}})
			c.results(done(ids[0]), done(ids[1]))
			for _, more := c.item(); more; _, more = c.item() { // the client must half-close
			}
			c.send(&pb.StreamInferResponse{Response: &pb.StreamInferResponse_Summary{Summary: &pb.StreamSummary{}}})
			return nil
		}, echo)
	stream := must(t, opened, err)
	if ids := exchange(t, stream, 10); !slices.Equal(ids, numbers(10)) || stream.Err() != nil || s.made != 2 {
		t.Errorf("got results of %v in %d calls, %v", ids, s.made, stream.Err())
	}
}

func TestRefusalIsNotTriedAgain(t *testing.T) {
	refusal, err := status.New(codes.NotFound, "no such model").WithDetails(
		&errdetails.ErrorInfo{Domain: "aclserve", Reason: "MODEL_NOT_FOUND", Metadata: map[string]string{"model": "x"}})
	if err != nil {
		t.Fatal(err)
	}
	_, s, err := open(t, Options{}, func(*scripted) error { return refusal.Err() })
	expectError(t, err, codes.NotFound, "MODEL_NOT_FOUND")
	if s.made != 1 || !reflect.DeepEqual(CallError(err).Metadata, map[string]string{"model": "x"}) {
		t.Errorf("%d calls, metadata %v", s.made, CallError(err).Metadata)
	}
}

func TestGivesUp(t *testing.T) {
	_, s, err := open(t, Options{ResumeAttempts: 3}, func(*scripted) error {
		return status.Error(codes.Unavailable, "gone")
	})
	expectError(t, err, codes.Unavailable, "UNAVAILABLE")
	if s.made != 4 {
		t.Errorf("%d calls, expected 4", s.made)
	}
}

func TestServerThatDoesNotAcceptTheStream(t *testing.T) {
	_, _, err := open(t, Options{OpenTimeout: 50 * time.Millisecond, ResumeAttempts: -1}, func(c *scripted) error {
		<-c.call.Context().Done()
		return nil
	})
	expectError(t, err, codes.DeadlineExceeded, "STREAM_NOT_READY")
}

func TestItemsThatCannotBeSent(t *testing.T) {
	opened, _, err := open(t, Options{}, func(c *scripted) error {
		c.ready(4)
		id, _ := c.item()
		_, more := c.item()
		if more {
			return status.Error(codes.Internal, "only one item was good")
		}
		c.results(done(id))
		return nil
	})
	stream := must(t, opened, err)
	if _, err := stream.Send(t.Context(), &pb.InferItem{Id: "a"}); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Send(t.Context(), &pb.InferItem{Id: "a"})
	expectError(t, err, codes.AlreadyExists, "DUPLICATE_ITEM_ID")
	_, err = stream.Send(t.Context(), &pb.InferItem{Inputs: []*pb.Tensor{Tensor("x", []int64{1 << 20}, make([]uint8, 1<<20))}})
	expectError(t, err, codes.ResourceExhausted, "MESSAGE_TOO_LARGE")
	stream.Finish()
	for range stream.Results() {
	}
	if err := stream.Err(); err != nil {
		t.Error(err)
	}
}

func TestOutcomes(t *testing.T) {
	opened, _, err := open(t, Options{}, func(c *scripted) error {
		c.ready(4)
		ids := c.items(3)
		c.results(
			&pb.InferResult{Id: ids[0], Outcome: &pb.InferResult_Error{Error: &pb.ItemError{Code: 3, Reason: "SHAPE_MISMATCH"}}},
			&pb.InferResult{Id: ids[1], Outcome: &pb.InferResult_Dropped{
				Dropped: &pb.Dropped{Reason: pb.DropReason_DROP_REASON_TOO_OLD},
			}})
		return nil // and nothing about the third
	})
	stream := must(t, opened, err)
	go func() {
		for range 3 {
			_, _ = stream.Send(t.Context(), &pb.InferItem{})
		}
	}()
	results := map[string]*pb.InferResult{}
	for result := range stream.Results() {
		results[result.Id] = result
	}
	expectError(t, ItemError(results["0"]), codes.InvalidArgument, "SHAPE_MISMATCH")
	if got := results["1"].GetDropped().GetReason(); got != pb.DropReason_DROP_REASON_TOO_OLD {
		t.Errorf("got the reason %v", got)
	}
	expectError(t, ItemError(results["2"]), codes.Internal, "ITEM_NOT_ANSWERED")
	if got := fmt.Sprint(stream.Summary().Drops); got != "map[TOO_OLD:1]" {
		t.Errorf("got drops %s", got)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	opened, _, err := open(t, Options{}, func(c *scripted) error {
		c.ready(1)
		<-c.call.Context().Done()
		return nil
	})
	stream := must(t, opened, err)
	if _, err := stream.Send(t.Context(), &pb.InferItem{}); err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := stream.Send(impatient, &pb.InferItem{}); !errors.Is(err, context.Canceled) {
		t.Errorf("an item beside a full window: got %v", err)
	}
	failed := make(chan error)
	go func() {
		_, err := stream.Send(t.Context(), &pb.InferItem{}) // the window is full
		failed <- err
	}()
	stream.Close()
	if err := <-failed; err == nil {
		t.Error("a closed stream took an item")
	}
	for range stream.Results() {
	}
	if CallError(stream.Err()).Code != codes.Canceled {
		t.Errorf("got %v", stream.Err())
	}
}

func TestConnectionThatTheCallerCloses(t *testing.T) {
	conn := make(chan *grpc.ClientConn, 1)
	opened, s, err := open(t, Options{}, func(c *scripted) error {
		c.ready(1)
		_ = (<-conn).Close()
		<-c.call.Context().Done()
		return nil
	})
	stream := must(t, opened, err)
	conn <- s.conn
	for range stream.Results() {
	}
	if stream.Err() == nil || s.made != 1 {
		t.Errorf("%d calls, %v", s.made, stream.Err())
	}
}

func TestTensors(t *testing.T) {
	tensor := Tensor("x", []int64{2}, []float32{1, -2})
	if got := fmt.Sprintf("%v %x", tensor.DataType, tensor.GetData()); got != "DATA_TYPE_FLOAT32 0000803f000000c0" {
		t.Errorf("got %s", got)
	}
	if values, err := Values[float32](tensor); err != nil || !slices.Equal(values, []float32{1, -2}) {
		t.Errorf("got %v, %v", values, err)
	}
	if _, err := Values[int64](tensor); err == nil {
		t.Error("floats were read as integers")
	}
}
