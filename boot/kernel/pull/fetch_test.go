package pull

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func setPrivate(dir string) error { return os.Chmod(dir, 0o700) }

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// data is some bytes that compress badly.
func data(n int, seed byte) []byte {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

func TestFetch(t *testing.T) {
	body := data(300<<10, 1)
	sum := sumOf(body)
	part := body[:100<<10]
	for name, c := range map[string]struct {
		server   func(f *files)
		sum      string
		size     int64
		part     []byte    // what is there
		info     *partInfo // and what it is of; its URL is filled in
		requests []string
		err      error // or
		words    string
		keeps    bool // a part, after the error
	}{
		"plain":        {requests: []string{"GET /f"}},
		"with its sum": {sum: sum, size: int64(len(body)), requests: []string{"GET /f"}},
		"gone on with after a break, by the sum": {server: func(f *files) { f.cut, f.cuts = 1000, 2 }, sum: sum,
			requests: []string{"GET /f", "GET /f bytes=1000-", "GET /f bytes=2000-"}},
		"gone on with after a break, by the tag": {server: func(f *files) { f.cut, f.cuts, f.etag = 1000, 1, `"1"` },
			requests: []string{"GET /f", "GET /f bytes=1000-"}},
		"from the start after a break, without either": {server: func(f *files) { f.cut, f.cuts = 1000, 1 },
			requests: []string{"GET /f", "GET /f"}},
		"from the start after a break, with a weak tag": {server: func(f *files) { f.cut, f.cuts, f.etag = 1000, 1, `W/"1"` },
			requests: []string{"GET /f", "GET /f"}},
		"a server without ranges": {server: func(f *files) { f.cut, f.cuts, f.ranges = 1000, 1, false }, sum: sum,
			requests: []string{"GET /f", "GET /f bytes=1000-"}},
		"many breaks, each a step further": {server: func(f *files) { f.cut, f.cuts = 50<<10, 5 }, sum: sum,
			requests: []string{"GET /f", "GET /f bytes=51200-", "GET /f bytes=102400-", "GET /f bytes=153600-", "GET /f bytes=204800-", "GET /f bytes=256000-"}},
		"a part of an earlier one":                   {part: part, info: &partInfo{Sum: sum}, sum: sum, requests: []string{"GET /f bytes=102400-"}},
		"a part of an earlier one, by the tag":       {server: func(f *files) { f.etag = `"1"` }, part: part, info: &partInfo{ETag: `"1"`}, requests: []string{"GET /f bytes=102400-"}},
		"a part of what has changed":                 {server: func(f *files) { f.etag = `"2"` }, part: data(5000, 2), info: &partInfo{ETag: `"1"`}, requests: []string{"GET /f bytes=5000-"}},
		"a part of something else":                   {part: data(5000, 2), info: &partInfo{Sum: sum}, sum: sum, requests: []string{"GET /f bytes=5000-", "GET /f"}},
		"a part that nobody knows":                   {part: part, requests: []string{"GET /f"}},
		"a part with another sum":                    {part: part, info: &partInfo{Sum: sumOf(nil)}, sum: sum, requests: []string{"GET /f"}},
		"all of it":                                  {part: body, info: &partInfo{Sum: sum}, sum: sum, size: int64(len(body)), requests: []string{"GET /f bytes=307200-"}},
		"more than all of it":                        {part: append(body[:len(body):len(body)], 1), info: &partInfo{Sum: sum}, sum: sum, requests: []string{"GET /f bytes=307201-", "GET /f"}},
		"another range than asked for":               {server: func(f *files) { f.lie = true }, part: part, info: &partInfo{Sum: sum}, sum: sum, requests: []string{"GET /f bytes=102400-", "GET /f"}},
		"a server that is busy":                      {server: func(f *files) { f.refuse = []int{503, 429, 500} }, requests: []string{"GET /f", "GET /f", "GET /f", "GET /f"}},
		"a server that is busy for long":             {server: func(f *files) { f.refuse = []int{503, 503, 503, 503} }, requests: []string{"GET /f", "GET /f", "GET /f", "GET /f"}, words: "answers 503 Service Unavailable: as the test asked"},
		"not there":                                  {server: func(f *files) { delete(f.bodies, "/f") }, requests: []string{"GET /f"}, err: ErrNotFound, words: "answers 404"},
		"not allowed":                                {server: func(f *files) { f.refuse = []int{403} }, requests: []string{"GET /f"}, words: "answers 403"},
		"another sum":                                {sum: sumOf(nil), requests: []string{"GET /f"}, err: ErrChecksum, words: sum},
		"another size":                               {sum: sum, size: 5, requests: []string{"GET /f"}, err: ErrArchive, words: "307200 bytes, want 5"},
		"always broken at the same place":            {server: func(f *files) { f.cut, f.cuts = 0, 99 }, sum: sum, requests: []string{"GET /f", "GET /f", "GET /f", "GET /f"}, err: io.ErrUnexpectedEOF, keeps: true},
		"broken for good, and nothing to go on from": {server: func(f *files) { f.cut, f.cuts = 1000, 99 }, requests: []string{"GET /f", "GET /f", "GET /f", "GET /f"}, err: io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t)
			f.bodies["/f"] = body
			if c.server != nil {
				c.server(f)
			}
			to := filepath.Join(t.TempDir(), "f")
			if c.part != nil {
				require.NoError(t, os.WriteFile(to+".part", c.part, 0o600))
			}
			if c.info != nil {
				c.info.URL = f.URL + "/f"
				require.NoError(t, writeInfo(to+".part.json", *c.info))
			}
			var last Progress
			report := &reporter{to: func(p Progress) {
				assert.GreaterOrEqual(t, p.Done, int64(0))
				last = p
			}}
			got, err := testWeb(t).fetch(t.Context(), download{url: f.URL + "/f", name: "f", sum: c.sum, size: c.size}, to, report)
			assert.Equal(t, c.requests, f.seen())
			if c.err != nil || c.words != "" {
				require.Error(t, err)
				if c.err != nil {
					assert.ErrorIs(t, err, c.err)
				}
				assert.ErrorContains(t, err, c.words)
				assert.Equal(t, c.keeps, len(names(t, filepath.Dir(to))) > 0, names(t, filepath.Dir(to)))
				return
			}
			require.NoError(t, err)
			assert.Equal(t, sum, got)
			b, err := os.ReadFile(to)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(body, b))
			assert.Equal(t, []string{"f"}, names(t, filepath.Dir(to)))
			if name != "all of it" {
				assert.Equal(t, Progress{StepDownloading, "f", int64(len(body)), int64(len(body))}, last)
			}
		})
	}
}

func writeInfo(path string, p partInfo) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

func TestFetchTakesWhatIsThere(t *testing.T) {
	f := serve(t)
	to := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(to, []byte("x"), 0o600))
	sum, err := testWeb(t).fetch(t.Context(), download{url: f.URL, sum: sumOf([]byte("x"))}, to, nil)
	require.NoError(t, err)
	assert.Equal(t, sumOf([]byte("x")), sum)
	assert.Empty(t, f.seen())
}

// What has come before an end by the user is gone on with the next time, if it can be.
func TestFetchEnded(t *testing.T) {
	for _, known := range []bool{true, false} {
		f := serve(t)
		f.bodies["/f"] = data(100<<10, 1)
		f.cut, f.cuts, f.stall = 10<<10, 1, make(chan struct{})
		d := download{url: f.URL + "/f", name: "f"}
		if known {
			d.sum = sumOf(f.bodies["/f"])
		}
		to := filepath.Join(t.TempDir(), "f")
		ctx, cancel := context.WithCancel(t.Context())
		_, err := testWeb(t).fetch(ctx, d, to, &reporter{to: func(p Progress) {
			if p.Done >= 10<<10 {
				cancel()
			}
		}})
		cancel()
		require.ErrorIs(t, err, context.Canceled)
		close(f.stall)
		if !known {
			assert.Empty(t, names(t, filepath.Dir(to)))
			continue
		}
		assert.Equal(t, []string{"f.part", "f.part.json"}, names(t, filepath.Dir(to)))
		f.seen()
		_, err = testWeb(t).fetch(t.Context(), d, to, nil)
		require.NoError(t, err)
		assert.Equal(t, []string{"GET /f bytes=10240-"}, f.seen())
	}
}

func TestFetchStalls(t *testing.T) {
	f := serve(t)
	f.bodies["/f"] = data(100<<10, 1)
	f.cut, f.cuts, f.stall = 10<<10, 1, make(chan struct{})
	w := testWeb(t)
	w.idle, w.retries = 50*time.Millisecond, nil
	_, err := w.fetch(t.Context(), download{url: f.URL + "/f"}, filepath.Join(t.TempDir(), "f"), nil)
	assert.ErrorIs(t, err, errStalled)
	close(f.stall)
}

// A server that promises the words of an error and does not send them is not waited for.
func TestFetchStallsInAnError(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, status := range []int{http.StatusServiceUnavailable, http.StatusNotFound} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(status)
			w.(http.Flusher).Flush()
			<-end
		}))
		t.Cleanup(s.Close)
		w := testWeb(t)
		w.idle, w.retries = 50*time.Millisecond, nil
		_, err := w.fetch(ctx, download{url: s.URL + "/f"}, filepath.Join(t.TempDir(), "f"), nil)
		require.ErrorIs(t, err, errStalled)
		assert.ErrorContains(t, err, http.StatusText(status))
		assert.Equal(t, status == http.StatusNotFound, errors.Is(err, ErrNotFound))
	}
}

func TestFetchHostErrors(t *testing.T) {
	f := serve(t)
	f.bodies["/f"] = data(100<<10, 1)
	_, err := testWeb(t).fetch(t.Context(), download{url: f.URL + "/f"}, filepath.Join(t.TempDir(), "none", "f"), nil)
	assert.ErrorIs(t, err, errHost)
	assert.Len(t, f.seen(), 1, "no use trying again")
}

func TestRedirects(t *testing.T) {
	plain := serve(t)
	plain.bodies["/f"] = []byte("x")
	from := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, map[string]string{"/down": plain.URL + "/f", "/round": "/round"}[r.URL.Path], http.StatusFound)
	}))
	defer from.Close()
	w := testWeb(t)
	w.client.Transport = from.Client().Transport
	for path, words := range map[string]string{"/down": "from https to http", "/round": "more than 10"} {
		_, err := w.fetch(t.Context(), download{url: from.URL + path}, filepath.Join(t.TempDir(), "f"), nil)
		require.ErrorIs(t, err, errRedirect)
		assert.ErrorContains(t, err, words)
	}
	assert.Empty(t, plain.seen())
}

func TestGetIsBounded(t *testing.T) {
	f := serve(t)
	f.bodies["/f"] = data(1000, 1)
	req, err := http.NewRequest(http.MethodGet, f.URL+"/f", nil)
	require.NoError(t, err)
	_, _, err = testWeb(t).get(req, 999)
	assert.ErrorIs(t, err, ErrArchive)
	f.refuse = []int{502}
	b, _, err := testWeb(t).get(req, 1000)
	require.NoError(t, err)
	assert.Len(t, b, 1000)
}

func TestContentRange(t *testing.T) {
	for s, want := range map[string][3]int64{
		"bytes 1-2/3": {1, 3, 1}, "bytes 5-9/*": {5, 0, 1}, "": {}, "bytes": {}, "bytes 1/3": {}, "bytes x-2/3": {}, "bytes -1-2/3": {}, "bytes 4-5/3": {}, "lines 1-2/3": {}, "bytes */5": {},
	} {
		start, whole, ok := contentRange(s)
		got := [3]int64{start, whole, 0}
		if ok {
			got[2] = 1
		}
		assert.Equal(t, want, got, s)
	}
}

func TestStatusErrors(t *testing.T) {
	assert.ErrorIs(t, &statusError{status: 404}, ErrNotFound)
	assert.False(t, errors.Is(&statusError{status: 403}, ErrNotFound))
}
