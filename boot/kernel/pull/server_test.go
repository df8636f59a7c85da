package pull

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// files is a server of files by their paths, with faults.
type files struct {
	*httptest.Server
	t testing.TB

	mu       sync.Mutex
	bodies   map[string][]byte
	etag     string // of all, "" for none
	cut      int    // bytes after which the connection breaks, 0 for never
	cuts     int    // how many responses are cut
	refuse   []int  // statuses of the next responses
	ranges   bool
	stall    chan struct{} // if not nil, a response waits for it after cut bytes
	requests []string      // "GET /path range"
	lie      bool          // send another range than was asked for
}

func serve(t testing.TB) *files {
	f := &files{t: t, bodies: map[string][]byte{}, ranges: true}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
	if len(f.refuse) > 0 {
		status := f.refuse[0]
		f.refuse = f.refuse[1:]
		http.Error(w, "as the test asked", status)
		return
	}
	body, ok := f.bodies[r.URL.Path]
	if !ok {
		http.NotFound(w, r)
		return
	}
	start, status := 0, http.StatusOK
	if f.etag != "" {
		w.Header().Set("ETag", f.etag)
	}
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok && f.ranges && (r.Header.Get("If-Range") == "" || r.Header.Get("If-Range") == f.etag) {
		var err error
		start, err = strconv.Atoi(strings.TrimSuffix(from, "-"))
		if err != nil || start >= len(body) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		if f.lie {
			start = 0
		}
		status = http.StatusPartialContent
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(body)-1, len(body)))
	}
	body = body[start:]
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if f.cuts == 0 {
		_, _ = w.Write(body)
		return
	}
	f.cuts--
	_, _ = w.Write(body[:min(f.cut, len(body))])
	w.(http.Flusher).Flush()
	if f.stall != nil {
		f.mu.Unlock()
		<-f.stall
		f.mu.Lock()
	}
	panic(http.ErrAbortHandler)
}

func (f *files) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := f.requests
	f.requests = nil
	return seen
}

// testWeb is a client that does not wait long.
func testWeb(t testing.TB) *web {
	w := newWeb()
	w.retries = []time.Duration{time.Millisecond, time.Millisecond, time.Millisecond}
	t.Cleanup(w.close)
	return w
}

// testOptions are those of a pull into a directory of the test's own.
func testOptions(t testing.TB) Options {
	dir := t.TempDir()
	require.NoError(t, setPrivate(dir))
	l := defaultLimits
	return Options{Dir: dir, web: testWeb(t), limits: l}
}
