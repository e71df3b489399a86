package main

import (
	"cmp"
	"context"
	"os"
	"testing"
	"time"
)

func TestDigits(t *testing.T) {
	address := os.Getenv("ACLSERVE_ADDRESS")
	if address == "" {
		t.Skip("ACLSERVE_ADDRESS does not name a server")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	right, count, err := recognise(ctx, address, cmp.Or(os.Getenv("ACLSERVE_DIGITS"), "../../../../demo/digits"))
	if err != nil {
		t.Fatal(err)
	}
	if count != 500 || right < 475 {
		t.Errorf("got %d of %d right, expected at least 475 of 500", right, count)
	}
}
