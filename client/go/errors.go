package aclserve

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "aclserve/aclservev1"
)

const domain = "aclserve"

// Error says why a call failed or an item has no outputs.
type Error struct {
	Code codes.Code
	// Reason is stable, such as SHAPE_MISMATCH; the name of the code where the server gave none.
	Reason string
	// Message is for people: what was got, what was expected, what to do.
	Message  string
	Metadata map[string]string
	// RetryDelay is above zero where the same may succeed later.
	RetryDelay time.Duration
}

func (e *Error) Error() string { return fmt.Sprintf("%s (%s)", e.Message, e.Reason) }

// ItemError is the error of one item, nil for a result without one.
func ItemError(result *pb.InferResult) error {
	e := result.GetError()
	if e == nil {
		return nil
	}
	return &Error{codes.Code(e.Code), e.Reason, e.Message, e.Metadata, e.RetryDelay.AsDuration()}
}

// CallError is what a failed call of the generated stubs means.
func CallError(err error) *Error {
	var known *Error
	if errors.As(err, &known) {
		return known
	}
	from := status.Convert(err)
	e := &Error{Code: from.Code(), Reason: codeName(from.Code()), Message: from.Message()}
	for _, detail := range from.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == domain {
				e.Reason, e.Metadata = detail.Reason, detail.Metadata
			}
		case *errdetails.RetryInfo:
			e.RetryDelay = detail.RetryDelay.AsDuration()
		}
	}
	return e
}

func codeName(code codes.Code) string {
	names := [...]string{
		"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
		"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
		"INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
	}
	if int(code) < len(names) {
		return names[code]
	}
	return "UNKNOWN"
}

// resumable is true where the server was lost, and where it says itself that another attempt may succeed. CANCELLED,
// UNKNOWN and INTERNAL without a reason are what gRPC reports for a connection torn down under a call.
func (e *Error) resumable() bool {
	switch e.Reason {
	case "CANCELLED", "UNKNOWN", "INTERNAL", "STREAM_NOT_READY":
		return true
	}
	return e.Code == codes.Unavailable || e.RetryDelay > 0
}

func failure(code codes.Code, reason, format string, values ...any) *Error {
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, values...)}
}
