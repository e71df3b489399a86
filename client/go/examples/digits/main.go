// Digits streams the held-out digits to the model `digits` and prints how many were recognised.
//
//	go run ./examples/digits [HOST:PORT]
package main

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"aclserve"
	pb "aclserve/aclservev1"
)

const imageSize = 8 * 8

func main() {
	address := cmp.Or(os.Getenv("ACLSERVE_ADDRESS"), "127.0.0.1:8001")
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	folder := cmp.Or(os.Getenv("ACLSERVE_DIGITS"), "../../demo/digits")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	right, count, err := recognise(ctx, address, folder)
	if err != nil {
		fmt.Fprintln(os.Stderr, "failed:", err)
		os.Exit(1)
	}
	fmt.Printf("accuracy    %.1f%% of %d answers\n", 100*float64(right)/float64(count), count)
}

// recognise sends each image as one item and counts the answers that name the right digit.
func recognise(ctx context.Context, address, folder string) (right, count int, err error) {
	images, err := readNpy(filepath.Join(folder, "heldout_images.npy"))
	if err != nil {
		return 0, 0, err
	}
	labels, err := readNpy(filepath.Join(folder, "heldout_labels.npy"))
	if err != nil {
		return 0, 0, err
	}
	conn, err := aclserve.Dial(address)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close()
	stream, err := aclserve.Open(ctx, conn, &pb.StreamConfig{Model: "digits"}, aclserve.Options{})
	if err != nil {
		return 0, 0, err
	}
	defer stream.Close()

	go func() { // while the results are read below
		defer stream.Finish()
		for start := 0; start < len(images); start += imageSize {
			pixels := make([]float32, imageSize)
			for i, value := range images[start : start+imageSize] {
				pixels[i] = float32(value)
			}
			input := aclserve.Tensor("image", []int64{1, 8, 8}, pixels)
			if _, err := stream.Send(ctx, &pb.InferItem{Inputs: []*pb.Tensor{input}}); err != nil {
				return // Err tells it below
			}
		}
	}()

	for result := range stream.Results() {
		if err := aclserve.ItemError(result); err != nil {
			return right, count, fmt.Errorf("image %s: %w", result.Id, err)
		}
		label, err := read(result)
		if err != nil {
			return right, count, err
		}
		image, err := strconv.Atoi(result.Id) // an item without an id has its position
		if err != nil {
			return right, count, err
		}
		if label == int64(labels[image]) {
			right++
		}
		count++
	}
	return right, count, stream.Err()
}

// read gives the digit that a result names.
func read(result *pb.InferResult) (int64, error) {
	tensor, err := aclserve.Output(result.GetOutputs(), "label")
	if err != nil {
		return 0, err
	}
	labels, err := aclserve.Values[int64](tensor)
	if err != nil {
		return 0, err
	}
	return labels[0], nil
}

// readNpy gives the bytes of an array of uint8 in numpy's format: six bytes of magic, two of version, two of the
// header's length, the header, the array.
func readNpy(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(data) < 10 || string(data[:6]) != "\x93NUMPY" {
		return nil, fmt.Errorf("%s is no .npy file", path)
	}
	begin := 10 + int(binary.LittleEndian.Uint16(data[8:]))
	if begin > len(data) {
		return nil, fmt.Errorf("%s is cut off", path)
	}
	return data[begin:], nil
}
