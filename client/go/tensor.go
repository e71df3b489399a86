package aclserve

import (
	"encoding/binary"
	"fmt"

	pb "aclserve/aclservev1"
)

// Number is an element of a tensor.
type Number interface {
	bool | uint8 | uint16 | uint32 | uint64 | int8 | int16 | int32 | int64 | float32 | float64
}

// Tensor makes an input from values in row-major order. For a model that batches, the first dimension counts rows.
func Tensor[T Number](name string, shape []int64, values []T) *pb.Tensor {
	data, err := binary.Append(make([]byte, 0, binary.Size(values)), binary.LittleEndian, values)
	if err != nil {
		panic(err) // T has no such type
	}
	return &pb.Tensor{Name: name, DataType: dataType[T](), Shape: shape, Source: &pb.Tensor_Data{Data: data}}
}

// Values gives the elements of an output in row-major order.
func Values[T Number](tensor *pb.Tensor) ([]T, error) {
	if got, want := tensor.GetDataType(), dataType[T](); got != want {
		return nil, fmt.Errorf("tensor %q has elements of %v, asked for %v", tensor.GetName(), got, want)
	}
	var element T
	values := make([]T, len(tensor.GetData())/binary.Size(element))
	if _, err := binary.Decode(tensor.GetData(), binary.LittleEndian, values); err != nil {
		return nil, fmt.Errorf("tensor %q: %w", tensor.GetName(), err)
	}
	return values, nil
}

// Output finds an output by name.
func Output(outputs *pb.Outputs, name string) (*pb.Tensor, error) {
	for _, tensor := range outputs.GetTensors() {
		if tensor.GetName() == name {
			return tensor, nil
		}
	}
	return nil, fmt.Errorf("no output %q in the result", name)
}

func dataType[T Number]() pb.DataType {
	var element T
	switch any(element).(type) {
	case bool:
		return pb.DataType_DATA_TYPE_BOOL
	case uint8:
		return pb.DataType_DATA_TYPE_UINT8
	case uint16:
		return pb.DataType_DATA_TYPE_UINT16
	case uint32:
		return pb.DataType_DATA_TYPE_UINT32
	case uint64:
		return pb.DataType_DATA_TYPE_UINT64
	case int8:
		return pb.DataType_DATA_TYPE_INT8
	case int16:
		return pb.DataType_DATA_TYPE_INT16
	case int32:
		return pb.DataType_DATA_TYPE_INT32
	case int64:
		return pb.DataType_DATA_TYPE_INT64
	case float32:
		return pb.DataType_DATA_TYPE_FLOAT32
	default:
		return pb.DataType_DATA_TYPE_FLOAT64
	}
}
