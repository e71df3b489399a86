package aclserve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "aclserve/aclservev1"
)

type serverCall = grpc.BidiStreamingServer[pb.StreamInferRequest, pb.StreamInferResponse]

// script is a server whose calls do what the test says, one function for each.
type script struct {
	pb.UnimplementedModelServiceServer
	t     *testing.T
	mu    sync.Mutex
	calls []func(*scripted) error
	made  int
	conn  *grpc.ClientConn // the client's
}

func (s *script) StreamInfer(call serverCall) error {
	s.mu.Lock()
	number := min(s.made, len(s.calls)-1) // the last one serves all that follow
	s.made++
	s.mu.Unlock()
	first, err := call.Recv()
	if err != nil {
		return err
	}
	if first.GetConfig() == nil {
		s.t.Errorf("the first message of a call is %v, expected the configuration", first)
	}
	return s.calls[number](&scripted{t: s.t, call: call})
}

// scripted is one call, seen from the server. It fails the test when more items are there than the window has.
type scripted struct {
	t       *testing.T
	call    serverCall
	waiting []string
	window  int
	held    int // items received and not answered
}

func (c *scripted) ready(window uint32) {
	c.window = int(window)
	c.send(&pb.StreamInferResponse{Response: &pb.StreamInferResponse_Ready{
		Ready: &pb.StreamReady{MaxPendingItems: window, MaxMessageBytes: 1 << 20, Policy: pb.FramePolicy_FRAME_POLICY_WAIT},
	}})
}

func (c *scripted) send(response *pb.StreamInferResponse) { _ = c.call.Send(response) }

func (c *scripted) resize(window uint32) {
	c.window = int(window)
	c.send(&pb.StreamInferResponse{Response: &pb.StreamInferResponse_Window{
		Window: &pb.StreamWindow{MaxPendingItems: window},
	}})
}

func (c *scripted) results(results ...*pb.InferResult) {
	c.held -= len(results)
	c.send(&pb.StreamInferResponse{Response: &pb.StreamInferResponse_Results{Results: &pb.ResultList{Results: results}}})
}

// item gives the id of the next item; false when the client sends no more.
func (c *scripted) item() (string, bool) {
	for len(c.waiting) == 0 {
		request, err := c.call.Recv()
		if err != nil {
			return "", false
		}
		for _, item := range request.GetItems().GetItems() {
			c.waiting = append(c.waiting, item.Id)
		}
		if c.held += len(request.GetItems().GetItems()); c.held > c.window {
			c.t.Errorf("%d items are pending, the window has %d", c.held, c.window)
		}
	}
	id := c.waiting[0]
	c.waiting = c.waiting[1:]
	return id, true
}

func (c *scripted) items(count int) (ids []string) {
	for range count {
		if id, more := c.item(); more {
			ids = append(ids, id)
		}
	}
	return ids
}

// echo answers everything until the client sends no more.
func echo(c *scripted) error {
	c.ready(4)
	for id, more := c.item(); more; id, more = c.item() {
		c.results(done(id))
	}
	return nil
}

func done(id string) *pb.InferResult {
	return &pb.InferResult{Id: id, Outcome: &pb.InferResult_Outputs{Outputs: &pb.Outputs{}}}
}

// open opens a stream to a script.
func open(t *testing.T, options Options, calls ...func(*scripted) error) (*Stream, *script, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, s := grpc.NewServer(), &script{t: t, calls: calls}
	pb.RegisterModelServiceServer(server, s)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	if options.Backoff == 0 {
		options.Backoff = time.Millisecond
	}
	s.conn = dial(t, listener.Addr().String())
	stream, err := Open(bounded(t), s.conn, &pb.StreamConfig{Model: "digits"}, options)
	return stream, s, err
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// bounded gives a context that no test outlives.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, stream *Stream, err error) *Stream {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// exchange sends empty items with ids 0, 1, ... and reads all results.
func exchange(t *testing.T, stream *Stream, count int) (ids []string) {
	t.Helper()
	go func() {
		defer stream.Finish()
		for range count {
			if _, err := stream.Send(bounded(t), &pb.InferItem{}); err != nil {
				return
			}
		}
	}()
	for result := range stream.Results() {
		ids = append(ids, result.Id)
	}
	return ids
}

func expectError(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	var got *Error
	if !errors.As(err, &got) || got.Code != code || got.Reason != reason {
		t.Errorf("got %v, expected %v %s", err, code, reason)
	}
}

func numbers(count int) (ids []string) {
	for number := range count {
		ids = append(ids, fmt.Sprint(number))
	}
	return ids
}
