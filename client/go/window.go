package aclserve

import pb "aclserve/aclservev1"

// load is so many items of so many bytes of inline inputs.
type load struct{ items, bytes int }

func (l *load) add(bytes int)    { l.items++; l.bytes += bytes }
func (l *load) remove(bytes int) { l.items--; l.bytes -= bytes }

// window is how much may be on its way. Where the frame policy gives items up (drops), the server must see those that
// are too many, so as many again may be on their way, at least 32.
type window struct {
	items, bytes int
	drops        bool
}

func (w window) fits(l load, bytes int) bool {
	items, most := max(1, w.items), w.bytes
	if w.drops {
		items, most = items+max(items, 32), 2*most
	}
	return l.items == 0 || l.items < items && (most == 0 || l.bytes+bytes <= most)
}

func inlineBytes(item *pb.InferItem) int {
	size := 0
	for _, input := range item.Inputs {
		size += len(input.GetData())
	}
	return size
}
