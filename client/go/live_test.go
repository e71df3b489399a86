package aclserve

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	pb "aclserve/aclservev1"
)

func liveAddress(t *testing.T) string {
	address := os.Getenv("ACLSERVE_ADDRESS")
	if address == "" {
		t.Skip("ACLSERVE_ADDRESS does not name a server")
	}
	return address
}

func image(rows int64) []*pb.Tensor {
	return []*pb.Tensor{Tensor("image", []int64{rows, 8, 8}, make([]float32, rows*64))}
}

func TestBadItemDoesNotEndTheStream(t *testing.T) {
	config := &pb.StreamConfig{Model: "digits", Preset: pb.StreamPreset_STREAM_PRESET_FILE, MaxPendingItems: 4}
	opened, err := Open(bounded(t), dial(t, liveAddress(t)), config, Options{})
	stream := must(t, opened, err)
	if window := stream.Ready().GetMaxPendingItems(); window != 4 {
		t.Errorf("got a window of %d items, asked for 4", window)
	}
	go func() {
		defer stream.Finish()
		for number := range 20 {
			inputs := image(1)
			if number == 5 {
				inputs = []*pb.Tensor{Tensor("image", []int64{1, 7, 7}, make([]float32, 49))}
			}
			if _, err := stream.Send(bounded(t), &pb.InferItem{Inputs: inputs}); err != nil {
				return
			}
		}
	}()
	position := 0
	for result := range stream.Results() {
		if result.Id != numbers(20)[position] {
			t.Errorf("got result %s at %d", result.Id, position)
		}
		if position == 5 {
			expectError(t, ItemError(result), codes.InvalidArgument, "SHAPE_MISMATCH")
		} else if err := ItemError(result); err != nil {
			t.Error(err)
		}
		position++
	}
	if got := stream.Summary(); stream.Err() != nil || got.SucceededItems != 19 || got.FailedItems != 1 {
		t.Errorf("got %v, %v", got, stream.Err())
	}
}

func TestUnknownModel(t *testing.T) {
	stream, err := Open(bounded(t), dial(t, liveAddress(t)), &pb.StreamConfig{Model: "none"}, Options{})
	if err == nil { // a model may come, so it is the items that fail
		_, _ = stream.Send(t.Context(), &pb.InferItem{Inputs: image(1)})
		stream.Finish()
		err = ItemError(<-stream.Results())
	}
	expectError(t, err, codes.NotFound, "MODEL_NOT_FOUND")
}

// A connection that is cut in the middle is made again, and nobody who reads the results sees it.
func TestConnectionThatIsCut(t *testing.T) {
	proxy := newProxy(t, liveAddress(t))
	config := &pb.StreamConfig{Model: "digits", MaxPendingItems: 8}
	opened, err := Open(bounded(t), dial(t, proxy.address()), config, Options{})
	stream := must(t, opened, err)
	go func() {
		defer stream.Finish()
		for range 300 {
			if _, err := stream.Send(bounded(t), &pb.InferItem{Inputs: image(1)}); err != nil {
				return
			}
		}
	}()
	seen := map[string]int{}
	for result := range stream.Results() {
		if err := ItemError(result); err != nil {
			t.Error(err)
		}
		seen[result.Id]++
		if len(seen) == 50 || len(seen) == 150 {
			proxy.cut()
		}
	}
	if stream.Err() != nil || stream.Resumed() != 2 || len(seen) != 300 || stream.Summary().ReceivedItems != 300 {
		t.Errorf("%d of 300 items have a result, %v; resumed %d times, %v",
			len(seen), stream.Summary(), stream.Resumed(), stream.Err())
	}
}

// A server that shuts down answers what it has accepted; the rest goes to the server that stands in for it.
func TestServerThatGoesAway(t *testing.T) {
	stays := liveAddress(t)
	leaves, stop := serve(t)
	proxy := newProxy(t, leaves)
	config := &pb.StreamConfig{Model: "digits", MaxPendingItems: 8}
	opened, err := Open(bounded(t), dial(t, proxy.address()), config, Options{})
	stream := must(t, opened, err)
	go func() {
		defer stream.Finish()
		for range 300 {
			if _, err := stream.Send(bounded(t), &pb.InferItem{Inputs: image(1)}); err != nil {
				return
			}
		}
	}()
	seen := map[string]int{}
	for result := range stream.Results() {
		if err := ItemError(result); err != nil {
			t.Error(err)
		}
		if seen[result.Id]++; len(seen) == 50 {
			proxy.redirect(stays)
			stop()
		}
	}
	if stream.Err() != nil || stream.Resumed() < 1 || len(seen) != 300 || stream.Summary().ReceivedItems != 300 {
		t.Errorf("%d of 300 items have a result, %v; resumed %d times, %v",
			len(seen), stream.Summary(), stream.Resumed(), stream.Err())
	}
}

// serve starts another server; stop asks it to shut down.
func serve(t *testing.T) (address string, stop func()) {
	words := strings.Fields(os.Getenv("ACLSERVE_SERVE"))
	if len(words) == 0 {
		t.Skip("ACLSERVE_SERVE does not say how to start a server")
	}
	command := exec.Command(words[0], words[1:]...)
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() { _ = command.Process.Signal(syscall.SIGTERM) })
	late := time.AfterFunc(time.Minute, func() { _ = command.Process.Kill() })
	t.Cleanup(func() {
		stop()
		if err := command.Wait(); err != nil {
			t.Errorf("the server ended with %v", err)
		}
		late.Stop()
	})
	line, _ := bufio.NewReader(out).ReadString('\n')
	ready, found := strings.CutPrefix(line, "ready grpc=")
	if !found {
		t.Fatalf("the server said %q", line)
	}
	return strings.Fields(ready)[0], stop
}

// proxy passes connections on, until it cuts them.
type proxy struct {
	listener net.Listener
	mu       sync.Mutex
	target   string
	open     []net.Conn
}

func newProxy(t *testing.T, target string) *proxy {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, target: target}
	t.Cleanup(func() { _ = listener.Close(); p.cut() })
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.mu.Lock()
			target := p.target
			p.mu.Unlock()
			server, err := net.Dial("tcp", target)
			if err != nil {
				_ = client.Close()
				continue
			}
			p.mu.Lock()
			p.open = append(p.open, client, server)
			p.mu.Unlock()
			go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
			go func() { _, _ = io.Copy(client, server); _ = client.Close() }()
		}
	}()
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

// redirect passes the next connections on to another server.
func (p *proxy) redirect(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.open {
		_ = conn.Close()
	}
	p.open = nil
}
