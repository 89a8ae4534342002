"""The league of tables: where the tables come from, what is asked, who answers, and how answers are scored."""
