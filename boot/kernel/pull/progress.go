package pull

import "sync"

// Step is what a pull is doing.
type Step string

// The steps of a pull, in their usual order.
const (
	StepWaiting     Step = "waiting"     // for another process that pulls the same
	StepLooking     Step = "looking"     // what the name stands for
	StepUpdating    Step = "updating"    // apt's package lists
	StepDownloading Step = "downloading" // bytes
	StepUnpacking   Step = "unpacking"   // bytes of the packed form
	StepIndexing    Step = "indexing"    // modules
	StepExtracting  Step = "extracting"  // the vmlinux, into the cache
)

// Progress says how far a pull is.
type Progress struct {
	Step Step
	// What is the name of a package, a layer or a file.
	What string
	// Done of Total bytes or modules; a Total of 0 is not known.
	Done, Total int64
}

// reporter passes progress on, one call at a time.
type reporter struct {
	mu sync.Mutex
	to func(Progress)
}

func (r *reporter) report(step Step, what string, done, total int64) {
	if r == nil || r.to == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.to(Progress{step, what, done, total})
}
