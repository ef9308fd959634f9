S My brother have two cat .
A 2 3|||R:VERB:SVA|||has|||REQUIRED|||-NONE-|||0
A 4 5|||R:NOUN:NUM|||cats|||REQUIRED|||-NONE-|||0

S The train was late again .
A -1 -1|||noop|||-NONE-|||REQUIRED|||-NONE-|||0

S We discussed about the the plan yesterday .
A 2 3|||U:PREP||||||REQUIRED|||-NONE-|||0
A 3 4|||U:DET||||||REQUIRED|||-NONE-|||0

S She is best student in class .
A 2 2|||M:DET|||the|||REQUIRED|||-NONE-|||0
A 5 5|||M:DET|||her|||REQUIRED|||-NONE-|||0
