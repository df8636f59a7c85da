package fs

import (
	"github.com/vole-vmm/vole/virtio"
)

// worker serves a request queue, one request at a time; its crew shares the queue.
type worker struct {
	d    *Device
	q    *virtio.Queue
	crew *virtio.Crew
	call chan struct{} // the crew's, to this worker
	r    *request
}

func (w *worker) run() {
	for w.crew.Listen(w.call) {
		ok := w.take()
		w.crew.Leave(!ok)
		if !ok {
			continue
		}
		if place := w.r.serve(); place != nil {
			w.d.serveApart(w.r, place)
			w.r = newRequest(w.d, w.q)
		}
	}
}

// take waits for the next request and reports false when the queue is stopped.
func (w *worker) take() bool {
	for !w.q.Pop(w.r.c) {
		if !w.q.Wait() {
			return false
		}
	}
	return true
}
