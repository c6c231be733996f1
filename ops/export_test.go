package ops

// StatusQueries are what Status asks of the server, for a set.
var StatusQueries = []string{statusReportsSQL, statusWorkersSQL, statusParkedSQL, statusPartitionsSQL}
